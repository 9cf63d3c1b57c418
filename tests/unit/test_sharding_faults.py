"""Inputs with faults, together in one build: each is used and its fault counted, or left out with its reason."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest

from sharding.cli import main
from sharding.corpus import open_corpus
from sharding.prepare import prepare_run
from sharding.preprocessing import PreprocessingSettings
from tests.helpers.images import head, save, with_header

Image = nib.Nifti1Image
SPOT = (11, 13, 11)
"A voxel of the brain in the 8 mm head."


def changed(change: Callable[[np.ndarray], None]) -> Image:
    """The head with its data changed in place."""
    data = np.asarray(head().dataobj).copy()
    change(data)
    return with_header(nib.Nifti1Image(data, head().affine), 1.0)


def nan_and_inf() -> Image:
    def change(data: np.ndarray) -> None:
        data[SPOT][3], data[SPOT][4] = np.nan, np.inf

    return changed(change)


def constant_voxels() -> Image:
    def change(data: np.ndarray) -> None:
        data[8:12, 8:12, 8:12] = data[8:12, 8:12, 8:12, :1]

    return changed(change)


def zero_frames() -> Image:
    def change(data: np.ndarray) -> None:
        data[..., 5:7] = 0

    return changed(change)


def scaled_integers() -> Image:
    image = head()
    data = np.asarray(image.dataobj, dtype=np.float64)
    whole = with_header(nib.Nifti1Image(np.round(data / 0.25 - 400).astype(np.int16), image.affine), 1.0)
    whole.header.set_slope_inter(0.25, 100.0)
    return whole


def five_axes() -> Image:
    image = head()
    return with_header(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, :, None, :], image.affine), 1.0, "sec")


def huge(folder: Path, name: str) -> None:
    """A header that claims 100 times what the file holds."""
    path = save(head(), folder, name)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[48:50] = np.int16(24 * 100).tobytes()  # dim[4]
    path.write_bytes(gzip.compress(bytes(raw), 1))


def far_data(folder: Path, name: str) -> None:
    """A header that puts the data 300 MB behind itself."""
    path = save(head(), folder, name.removesuffix(".gz"))
    raw = bytearray(path.read_bytes())
    raw[108:112] = np.float32(3e8).tobytes()  # vox_offset
    path.write_bytes(bytes(raw))


def truncated(folder: Path, name: str) -> None:
    path = save(head(), folder, name)
    path.write_bytes(path.read_bytes()[:-4000])


def wrong_checksum(folder: Path, name: str) -> None:
    path = save(head(), folder, name)
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(bytes(raw))


def empty(folder: Path, name: str) -> None:
    (folder / name).touch()


def all_nan(folder: Path, name: str) -> None:
    data = np.full(head().shape, np.nan, dtype=np.float32)
    save(with_header(nib.Nifti1Image(data, head().affine), 1.0), folder, name)


def all_zero(folder: Path, name: str) -> None:
    save(with_header(nib.Nifti1Image(np.zeros(head().shape, dtype=np.float32), head().affine), 1.0), folder, name)


def no_time(folder: Path, name: str) -> None:
    save(with_header(head(), 1.0, unit="hz"), folder, name)


def milliseconds_called_seconds(folder: Path, name: str) -> None:
    save(with_header(head(), 1000.0), folder, name)


def beside_the_brain(folder: Path, name: str) -> None:
    affine = head().affine.copy()
    affine[:3, 3] += [0, 120, 60]
    save(with_header(nib.Nifti1Image(np.asarray(head().dataobj), affine), 1.0), folder, name)


USED = {
    "nan": nan_and_inf,
    "constant": constant_voxels,
    "zeroframes": zero_frames,
    "scaled": scaled_integers,
    "fiveaxes": five_axes,
}
REFUSED = {
    "huge": (huge, "cannot hold the|data end after"),
    "far": (far_data, "cannot hold the"),
    "truncated": (truncated, "truncated"),
    "checksum": (wrong_checksum, "damaged"),
    "empty": (empty, "named .gz but not gzip"),
    "allnan": (all_nan, "100% of the brain's voxels are NaN"),
    "allzero": (all_zero, "no signal"),
    "notime": (no_time, "which is no time"),
    "milliseconds": (milliseconds_called_seconds, "TR 1000 s"),
    "beside": (beside_the_brain, "hardly overlaps the MNI brain"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    """A corpus of a folder with every fault and one good run; rows of runs.parquet by subject."""
    source, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out") / "corpus"
    save(head(), source, "sub-good_bold.nii.gz")
    for name, image in USED.items():
        save(image(), source, f"sub-{name}_bold.nii.gz")
    for name, (write, _) in REFUSED.items():
        write(source, f"sub-{name}_bold.nii.gz")
    words = ["--out", str(out), "--dataset", "d", "--target-tr", "native", "--workers", "0", "--shard-mb", "30"]
    assert main(["build", str(source), *words]) == 1
    return out, {run["subject"]: run for run in pq.read_table(out / "runs.parquet").to_pylist()}


def test_corpus_of_what_can_be_used_is_whole(built: tuple[Path, dict]) -> None:
    corpus = open_corpus(built[0])
    assert set(corpus.index["subject"]) == {"good", *USED}
    assert corpus.meta["totals"]["failed"] == len(REFUSED)
    assert set(built[1]) == {"good", *USED, *REFUSED}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_has_its_reason(built: tuple[Path, dict], name: str) -> None:
    run = built[1][name]
    assert run["status"] == "failed"
    assert any(part in run["reason"] for part in REFUSED[name][1].split("|")), run["reason"]
    assert f"sub-{name}_bold.nii" in run["reason"]


def test_faults_that_are_mended_are_counted(built: tuple[Path, dict]) -> None:
    runs = built[1]
    assert runs["good"]["nonfinite_values"] == runs["good"]["zero_frames"] == 0
    assert runs["nan"]["nonfinite_values"] == 2
    assert runs["zeroframes"]["zero_frames"] == 2
    assert runs["constant"]["constant_fraction"] > runs["good"]["constant_fraction"] + 0.001
    for name in ("good", *USED):
        assert runs[name]["status"] == "ok"
        assert runs[name]["int8_corr_median"] > 0.999


def test_integers_with_a_slope_are_the_numbers_they_stand_for(tmp_path: Path) -> None:
    settings = PreprocessingSettings(target_tr=None)
    one = prepare_run(save(head(), tmp_path, "a_bold.nii"), settings)
    other = prepare_run(save(scaled_integers(), tmp_path, "b_bold.nii"), settings)
    np.testing.assert_allclose(other.frames(0, 24), one.frames(0, 24), atol=0.13)


def test_single_fifth_axis_is_time(tmp_path: Path) -> None:
    settings = PreprocessingSettings(target_tr=None)
    one = prepare_run(save(head(), tmp_path, "a_bold.nii"), settings)
    other = prepare_run(save(five_axes(), tmp_path, "b_bold.nii"), settings)
    np.testing.assert_array_equal(other.codes, one.codes)
