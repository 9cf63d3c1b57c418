"""The synthetic cohort: MNI space, left is left, networks in their band and place, the same for the same seed."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sharding.cli import main
from sharding.errors import ShardingError
from sharding.phantom import BAND_HZ, SITES, make_cohort
from sharding.phantom_anatomy import NETWORKS, load_anatomy, network_map


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "phantom"
    assert len(list(make_cohort(folder, subjects=3, volumes=60, voxel_mm=6.0))) == 3
    return folder


def images(cohort: Path) -> list[nib.Nifti1Image]:
    return [nib.load(path) for path in sorted(cohort.rglob("*_bold.nii.gz"))]


def mean_at(image: nib.Nifti1Image, values: np.ndarray, centres: tuple[tuple[float, float, float], ...]) -> float:
    """Mean of values (X, Y, Z) at the voxels nearest to points in mm."""
    index = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), np.array(centres))).astype(int)
    return float(values[tuple(index.T)].mean())


def test_cohort_has_both_orientations_and_several_repetition_times(cohort: Path) -> None:
    found = images(cohort)
    assert {"".join(nib.aff2axcodes(image.affine)) for image in found} == {"LAS", "RAS"}
    assert {round(float(image.header.get_zooms()[3]), 3) for image in found} == {site.tr for site in SITES}
    for image in found:
        assert image.get_data_dtype() == np.int16
        assert int(image.header["sform_code"]) == 4
        sidecar = json.loads(Path(image.get_filename().replace(".nii.gz", ".json")).read_text())
        assert sidecar["RepetitionTime"] == pytest.approx(float(image.header.get_zooms()[3]))


def test_language_lies_on_the_left_in_every_file(cohort: Path) -> None:
    left = ((-50, 20, 14), (-56, -42, 8))
    for image in images(cohort):
        data = np.asarray(image.dataobj, dtype=np.float64)
        sd = data.std(axis=-1) / np.maximum(data.mean(axis=-1), 1)
        right = tuple((-x, y, z) for x, y, z in left)
        assert mean_at(image, sd, left) > 1.1 * mean_at(image, sd, right)


def test_network_fluctuates_together_and_within_its_band(cohort: Path) -> None:
    image = images(cohort)[1]  # TR 2 s, the quiet scanner
    data = np.asarray(image.dataobj, dtype=np.float64)
    courses = []
    for centre in NETWORKS["motor"][:2]:
        index = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), centre)).astype(int)
        block = data[tuple(slice(i - 1, i + 2) for i in index)]
        courses.append(block.reshape(-1, block.shape[-1]).mean(axis=0))
    assert np.corrcoef(courses)[0, 1] > 0.4  # left and right hand areas
    times = np.arange(data.shape[-1])
    course = np.mean(courses, axis=0)
    course = course - np.polyval(np.polyfit(times, course, 2), times)
    power = np.abs(np.fft.rfft(course)) ** 2
    frequency = np.fft.rfftfreq(len(course), 2.0)
    assert power[(frequency >= BAND_HZ[0]) & (frequency <= BAND_HZ[1])].sum() > 0.8 * power[1:].sum()


def test_signal_to_noise_is_that_of_a_scanner(cohort: Path) -> None:
    for image in images(cohort):
        data = np.asarray(image.dataobj, dtype=np.float64)
        brain = data.mean(axis=-1) > 300
        tsnr = data.mean(axis=-1)[brain] / data.std(axis=-1)[brain]
        assert 30 < np.median(tsnr) < 150


def test_people_differ_and_are_described(cohort: Path) -> None:
    with (cohort / "participants.tsv").open() as file:
        people = list(csv.DictReader(file, delimiter="\t"))
    assert [person["participant_id"] for person in people] == ["sub-01", "sub-02", "sub-03"]
    assert {person["site"] for person in people} == {site.name for site in SITES}
    assert all(20 <= int(person["age"]) < 80 for person in people)


def test_same_seed_same_files_and_another_seed_others(cohort: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        list(make_cohort(tmp_path / name, subjects=1, volumes=60, voxel_mm=6.0, seed=seed))
    first = next(cohort.rglob("sub-01*_bold.nii.gz")).read_bytes()
    assert next((tmp_path / "same").rglob("*_bold.nii.gz")).read_bytes() == first
    assert next((tmp_path / "other").rglob("*_bold.nii.gz")).read_bytes() != first


def test_cohort_builds_into_a_corpus_with_all_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "phantom"
    options = ["--subjects", "6", "--volumes", "20", "--voxel-mm", "8"]
    assert main(["phantom", str(folder), *options]) == 0
    assert main(["build", str(folder), "--out", str(tmp_path / "corpus"), "--target-tr", "native"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "corpus")]) == 0
    said = capsys.readouterr().out
    assert "never divided" not in said
    assert "MNI152 space by    file name (6)" in said


def test_voxels_of_two_mm_lie_on_the_canonical_lattice() -> None:
    anatomy = load_anatomy(2.0)
    assert anatomy.shape == (91, 109, 91)
    assert not np.any((anatomy.affine[:3, 3] - [-96, -114, -78]) % 2)
    assert network_map(anatomy, "visual", np.zeros(3)).max() == 1


@pytest.mark.parametrize("change", [{"subjects": 0}, {"volumes": 1}, {"voxel_mm": 0.1}])
def test_numbers_that_make_no_cohort_are_refused(tmp_path: Path, change: dict) -> None:
    with pytest.raises(ShardingError, match="expected at least"):
        list(make_cohort(tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_cohort_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    runs = make_cohort(tmp_path / "out", subjects=2, volumes=4, voxel_mm=12.0)
    next(runs)
    assert not (tmp_path / "out").exists()
    runs.close()
    assert list(tmp_path.iterdir()) == []
    written = list(make_cohort(tmp_path / "out", subjects=2, volumes=4, voxel_mm=12.0))
    assert all(path.is_file() for path in written)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ShardingError, match="not an empty folder"):
        list(make_cohort(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
