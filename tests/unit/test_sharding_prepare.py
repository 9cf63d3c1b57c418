"""A run prepared: space is believed on evidence, holes are mended and counted, memory has a bound."""

import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sharding import regress, store
from sharding.errors import InputError
from sharding.format import GRID_AFFINE
from sharding.mask import brain_mask
from sharding.prepare import PreparedRun, PreprocessingSettings, prepare_run
from sharding.quantise import decode
from tests.helpers.images import head, save, stored_as, with_header

NATIVE = PreprocessingSettings(target_tr=None)
BRAIN = brain_mask(dilated=False)[brain_mask()]


def prepared(image: nib.Nifti1Image, folder: Path, settings: PreprocessingSettings = NATIVE, **options) -> PreparedRun:
    name = options.pop("name", "sub-01_task-rest_bold.nii.gz")
    return prepare_run(save(image, folder, name), settings, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    return prepared(head(), tmp_path_factory.mktemp("run"))


def test_codes_decode_to_the_frames(run: PreparedRun) -> None:
    frames, codes = run.frames(0, run.num_frames), run.codes
    assert codes.dtype == np.int8
    assert codes.shape == frames.shape == (24, int(brain_mask().sum()))
    steps = np.maximum(run.scale[1].astype(np.float32) * run.unit, 1e-3)
    assert (np.abs(decode(codes, run.scale, run.unit) - frames) <= 0.52 * steps).all()


def test_segments_are_pieces_of_the_whole(run: PreparedRun) -> None:
    np.testing.assert_array_equal(np.concatenate([run.segment(0, 7), run.segment(7, 24)]), run.codes)


def test_run_statistics_are_those_of_the_brain(run: PreparedRun) -> None:
    brain = run.frames(0, run.num_frames)[:, BRAIN].astype(np.float64)
    assert run.mean == pytest.approx(brain.mean(), rel=1e-6)
    assert run.sd == pytest.approx(brain.std(), rel=1e-6)
    assert run.background == pytest.approx((brain.min() - brain.mean()) / brain.std(), rel=1e-5)


def test_left_stays_left(run: PreparedRun) -> None:
    volume = np.zeros((96, 96, 96))
    volume[brain_mask()] = run.frames(0, 1)[0]
    brain = brain_mask(dilated=False)
    left, right = volume[:48][brain[:48]], volume[48:][brain[48:]]
    assert left.mean() > 1.2 * right.mean()  # the test's head is brighter on its left


def test_own_brain_mask_decides_the_statistics(tmp_path: Path) -> None:
    image = head()
    inside = np.asarray(image.dataobj)[..., 0] > 0
    inside[inside.shape[0] // 2 :] = False  # the left half, which is brighter
    mask = save(nib.Nifti1Image(inside.astype(np.uint8), image.affine), tmp_path, "mask.nii.gz")
    half, whole = prepared(image, tmp_path, mask_path=mask), prepared(image, tmp_path)
    assert half.mean > 1.1 * whole.mean
    np.testing.assert_array_equal(half.frames(0, 24), whole.frames(0, 24))


def test_nan_in_a_mask_is_outside(tmp_path: Path) -> None:
    image = head()
    inside = (np.asarray(image.dataobj)[..., 0] > 0).astype(np.float32)
    plain = save(nib.Nifti1Image(inside, image.affine), tmp_path, "mask.nii.gz")
    with_nan = save(nib.Nifti1Image(np.where(inside > 0, 1, np.nan), image.affine), tmp_path, "nan.nii.gz")
    one, other = (prepared(image, tmp_path, mask_path=mask) for mask in (plain, with_nan))
    assert (one.mean, one.mask_dice) == (other.mean, other.mask_dice)


def test_long_run_spills_to_a_file_with_the_same_result(
    tmp_path: Path, run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MEMORY_BYTES", 0)
    spilled = prepared(head(), tmp_path, scratch=tmp_path)
    np.testing.assert_array_equal(spilled.codes, run.codes)
    np.testing.assert_array_equal(spilled.stats, run.stats)
    assert [path.name for path in tmp_path.iterdir()] == ["sub-01_task-rest_bold.nii.gz"]


def test_negative_values_are_clipped_in_an_image_of_intensities(tmp_path: Path) -> None:
    image = head()
    data = np.asarray(image.dataobj).copy()
    data[10:12, 12, 10] = -50
    run = prepared(with_header(nib.Nifti1Image(data, image.affine), 1.0), tmp_path)
    assert run.clip_negatives
    assert 0 < run.moments.negative_fraction < 0.01
    assert run.frames(0, 24).min() == 0
    assert run.background == pytest.approx(-run.mean / run.sd, rel=1e-6)


def test_image_centred_about_zero_keeps_its_negatives(tmp_path: Path) -> None:
    image = head()
    data = np.asarray(image.dataobj)
    centred = with_header(nib.Nifti1Image(data - data.mean(axis=-1, keepdims=True), image.affine), 1.0)
    run = prepared(centred, tmp_path)
    assert not run.clip_negatives
    assert run.frames(0, 24).min() < 0
    assert abs(run.mean) < 0.01 * run.sd
    clipped = prepared(centred, tmp_path, PreprocessingSettings(target_tr=None, negatives="clip"))
    assert clipped.frames(0, 24).min() == 0


def test_isolated_nan_and_inf_are_mended_and_counted(tmp_path: Path, run: PreparedRun) -> None:
    image = head()
    data = np.asarray(image.dataobj).copy()
    data[11, 13, 11, 5], data[11, 13, 11, 6], data[9, 13, 11, 0] = np.nan, np.inf, -np.inf
    mended = prepared(with_header(nib.Nifti1Image(data, image.affine), 1.0), tmp_path)
    assert mended.nonfinite == 3
    # The last finite value stands in; before any there is 0.
    data[11, 13, 11, 5:7], data[9, 13, 11, 0] = data[11, 13, 11, 4], 0
    expected = prepared(with_header(nib.Nifti1Image(data, image.affine), 1.0), tmp_path)
    np.testing.assert_array_equal(mended.codes, expected.codes)
    assert run.nonfinite == expected.nonfinite == 0


def test_nan_outside_the_brain_counts_as_no_signal(tmp_path: Path) -> None:
    image = head()
    data = np.asarray(image.dataobj).copy()
    data[data == 0] = np.nan
    run = prepared(with_header(nib.Nifti1Image(data, image.affine), 1.0), tmp_path)
    np.testing.assert_array_equal(run.codes, prepared(image, tmp_path).codes)
    assert run.nonfinite > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_but_nan_is_refused(tmp_path: Path, value: float) -> None:
    image = head()
    data = np.full(image.shape, value, dtype=np.float32)
    with pytest.raises(InputError, match="100% of the brain's voxels are NaN or Inf"):
        prepared(with_header(nib.Nifti1Image(data, image.affine), 1.0), tmp_path)


@pytest.mark.parametrize(("value", "reason"), [(0.0, "no signal"), (7.0, "same value")])
def test_image_without_signal_is_refused(tmp_path: Path, value: float, reason: str) -> None:
    data = np.full(head().shape, value, dtype=np.float32)
    with pytest.raises(InputError, match=reason):
        prepared(with_header(nib.Nifti1Image(data, head().affine), 1.0), tmp_path, assume_mni=True)


@pytest.mark.parametrize(
    ("code", "name", "space"),
    [
        (4, "sub-01_bold.nii.gz", "header"),
        (2, "sub-01_bold.nii.gz", "overlap"),
        (0, "sub-01_bold.nii.gz", "overlap"),
        (1, "sub-01_space-MNI152NLin6Asym_res-2_bold.nii.gz", "file name"),
    ],
)
def test_space_is_believed_on_evidence(tmp_path: Path, code: int, name: str, space: str) -> None:
    image = head()
    if code == 0:  # without a code nibabel writes no affine; qform alone then says where it is
        image.set_sform(image.affine, code=0)
        image.set_qform(image.affine, code=2)
    else:
        image = with_header(image, 1.0, space_code=code)
    assert prepared(image, tmp_path, name=name).space == space


@pytest.mark.parametrize(
    ("code", "name", "reason"),
    [
        (1, "sub-01_bold.nii.gz", "scanner space"),
        (3, "sub-01_bold.nii.gz", "Talairach"),
        (4, "sub-01_space-T1w_bold.nii.gz", "space-T1w"),
        (4, "sub-01_space-MNIPediatricAsym_bold.nii.gz", "space-MNIPediatricAsym"),
    ],
)
def test_another_space_is_refused_and_taken_when_told(tmp_path: Path, code: int, name: str, reason: str) -> None:
    image = with_header(head(), 1.0, space_code=code)
    with pytest.raises(InputError, match=rf"{reason}.*--assume-mni"):
        prepared(image, tmp_path, name=name)
    assert prepared(image, tmp_path, name=name, assume_mni=True).space == "assumed"


@pytest.mark.parametrize("name", ["sub-01_bold.nii.gz", "sub-01_space-MNI152NLin6Asym_bold.nii.gz"])
def test_image_without_a_transform_is_refused_whatever_its_name_says(tmp_path: Path, name: str) -> None:
    image = head()
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    with pytest.raises(InputError, match=r"sform and qform code 0.*--assume-mni"):
        prepared(image, tmp_path, name=name)


@pytest.mark.parametrize("value", [1e13, 1e20])
def test_one_value_out_of_all_proportion_is_refused(tmp_path: Path, value: float) -> None:
    image = head()
    data = np.asarray(image.dataobj, dtype=np.float32)
    data[(*(n // 2 for n in data.shape[:3]), 5)] = value
    with pytest.raises(InputError, match=r"values up to 1e\+\d+ leave nothing of the others"):
        prepared(with_header(nib.Nifti1Image(data, image.affine), 1.0), tmp_path)


def test_image_beside_the_brain_is_refused_whatever_it_says(tmp_path: Path) -> None:
    image = head()
    affine = image.affine.copy()
    affine[:3, 3] += [0, 110, 40]
    moved = with_header(nib.Nifti1Image(np.asarray(image.dataobj), affine), 1.0)
    with pytest.raises(InputError, match=r"hardly overlaps the MNI brain.*--assume-mni"):
        prepared(moved, tmp_path)
    assert prepared(moved, tmp_path, assume_mni=True).overlap.brain_covered < 0.5


def test_statistics_are_of_the_brain_that_the_image_reaches(tmp_path: Path) -> None:
    image = head()
    data = np.asarray(image.dataobj)[:, :, :9]  # the lower part of the head
    slab = prepared(with_header(nib.Nifti1Image(data, image.affine), 1.0), tmp_path, assume_mni=True)
    assert 0.3 < slab.outside_fov < 0.7
    z_mm = GRID_AFFINE[2, 3] + 2 * np.argwhere(brain_mask())[:, 2]
    reached = BRAIN & (z_mm <= -4)  # half a voxel above the centre of the ninth slice
    assert slab.mean == pytest.approx(slab.frames(0, 24)[:, reached].mean(), rel=1e-5)


def test_image_far_from_the_brain_is_refused_even_when_assumed(tmp_path: Path) -> None:
    image = head()
    affine = image.affine.copy()
    affine[:3, 3] += [0, 900, 0]
    far = with_header(nib.Nifti1Image(np.asarray(image.dataobj), affine), 1.0)
    with pytest.raises(InputError, match=r"reaches 0 voxels of the MNI brain.*is it in MNI152 space\?"):
        prepared(far, tmp_path, assume_mni=True)


def test_too_short_a_run_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"19 volumes of 1 s make 19 frames of 1 s; --min-frames is 20"):
        prepared(head(volumes=19), tmp_path)
    assert prepared(head(volumes=19), tmp_path, PreprocessingSettings()).num_frames == 23


@pytest.mark.parametrize("voxel_mm", [8.0, 6.0])
def test_storage_order_changes_no_bit_of_a_prepared_run(tmp_path: Path, voxel_mm: float) -> None:
    image = head(voxel_mm=voxel_mm)
    one, other = prepared(image, tmp_path / "a"), prepared(stored_as(image, "PIL"), tmp_path / "b")
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.scale, other.scale)
    np.testing.assert_array_equal(one.stats, other.stats)
    assert (one.mean, one.sd, one.background, one.unit) == (other.mean, other.sd, other.background, other.unit)


@pytest.mark.parametrize(
    "change", [{"negatives": "drop"}, {"target_tr": 0.0}, {"target_tr": float("nan")}, {"min_frames": 1}]
)
def test_settings_that_make_no_sense_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        PreprocessingSettings(**change)


def test_settings_survive_json() -> None:
    settings = PreprocessingSettings(target_tr=None, min_frames=30)
    assert PreprocessingSettings(**settings.to_json()) == settings


@pytest.mark.parametrize("options", [{}, {"high_pass_hz": 0.05}, {"target_tr": 1.7}])
def test_memory_does_not_grow_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    monkeypatch.setattr(store, "MEMORY_BYTES", 2**20)
    monkeypatch.setattr(regress, "BLOCK_BYTES", 2**20)
    mask = np.zeros(brain_mask().shape, dtype=bool)
    mask[::3, ::3, ::3] = brain_mask()[::3, ::3, ::3]
    settings = PreprocessingSettings(**{"target_tr": None, **options})
    peaks = []
    for volumes in (96, 96, 288):  # the first fills what is kept for good
        path = save(head(voxel_mm=12.0, volumes=volumes), tmp_path)
        tracemalloc.start()
        run = prepare_run(path, settings, scratch=tmp_path, mask=mask)
        for start in range(0, run.num_frames, 40):
            run.segment(start, min(start + 40, run.num_frames))
        run.close()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.05 * peaks[1]
