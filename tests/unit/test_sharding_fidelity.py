"""What is stored is what was measured: codes keep every series, resampling is nilearn's, the published crop is its own.

Real scanner data are tried where the environment variable FMRI_SCALE_HAXBY names a folder of 4D NIfTI runs.
"""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn.image import resample_img
from scipy import ndimage

from sharding.fidelity import SAMPLED_VOXELS, RoundTrip
from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.grid import grid_sampler, image_frame
from sharding.legacy import legacy_frame
from sharding.mask import brain_mask
from sharding.prepare import prepare_run
from sharding.preprocessing import PreprocessingSettings
from sharding.quantise import VoxelMoments, decode, encode, power_of_two_unit, voxel_scale
from sharding.spline import spline_sampler
from tests.helpers.images import head, save, stored_as

HAXBY = os.environ.get("FMRI_SCALE_HAXBY", "")
WANTED = np.flatnonzero(brain_mask())
NATIVE = PreprocessingSettings(target_tr=None)
SPARSE = np.zeros(GRID_SHAPE, dtype=bool)
SPARSE[::4, ::4, ::4] = brain_mask()[::4, ::4, ::4]


def scanned(frames: int = 300, voxels: int = 4000, bright: float = 0.0) -> np.ndarray:
    """Voxels around 10,000 that change by 1.2 % in time, a share of them four times brighter: float32 (T, V)."""
    rng = np.random.default_rng(0)
    level = rng.normal(10_000, 2_000, voxels)
    series = level * (1 + 0.012 * rng.standard_normal((frames, voxels)))
    series[:, : int(bright * voxels)] *= 4
    return series.astype(np.float32)


def by_voxel(x: np.ndarray) -> np.ndarray:
    """Through codes with a scale for each voxel."""
    moments = VoxelMoments(
        *(
            f(x.astype(np.float64))
            for f in (lambda a: a.mean(0), lambda a: a.std(0), lambda a: a.min(0), lambda a: a.max(0))
        )
    )
    unit = power_of_two_unit(float(x.std()), float(np.abs(x).max()))
    scale, _ = voxel_scale(moments, unit, 12.0)
    return decode(encode(x, scale, unit)[0], scale, unit)


def by_run(x: np.ndarray) -> np.ndarray:
    """Through codes with one scale for the run: z over voxels and time, the largest value at 127."""
    z = (x - x.mean()) / x.std()
    step = np.abs(z).max() / 127
    return np.round(z / step).clip(-127, 127) * step


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (a.astype(np.float64) - a.mean(axis=0, dtype=np.float64) for a in (x, y))
    return (x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0)).clip(1e-30)


def test_bright_voxels_cost_others_nothing_where_one_scale_for_the_run_loses_them() -> None:
    plain, brighter = scanned(), scanned(bright=0.001)
    others = slice(4, None)
    np.testing.assert_array_equal(plain[:, others], brighter[:, others])
    ours = [np.median(correlations(x, by_voxel(x))[others]) for x in (plain, brighter)]
    theirs = [np.median(correlations(x, by_run(x))[others]) for x in (plain, brighter)]
    assert min(ours) > 0.9999
    assert abs(ours[0] - ours[1]) < 1e-6
    assert theirs[0] > 0.97
    assert 0.7 < theirs[1] < 0.88


def quality(path: Path, **options) -> np.ndarray:
    run = prepare_run(path, NATIVE, mask=SPARSE, **options)
    assert len(run.codes) == run.num_frames
    return run.round_trip.correlations()


def test_codes_of_a_run_keep_its_series(tmp_path: Path) -> None:
    found = quality(save(head(volumes=60), tmp_path))
    assert np.median(found) >= 0.999
    assert np.percentile(found, 5) >= 0.99


@pytest.mark.skipif(not HAXBY, reason="FMRI_SCALE_HAXBY names no folder of runs")
def test_codes_keep_the_series_of_a_scanner(tmp_path: Path) -> None:
    for path in sorted(Path(HAXBY).glob("*_bold.nii.gz")):
        found = quality(path, assume_mni=True)
        assert np.median(found) >= 0.999, path
        assert np.percentile(found, 5) >= 0.99, path
        image = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
        voxels = np.random.default_rng(0).permutation(data[..., 0].size)[: max(1, data[..., 0].size // 1000)]
        data.reshape(-1, data.shape[-1])[voxels] *= 4
        brighter = quality(save(nib.Nifti1Image(data, image.affine, image.header), tmp_path), assume_mni=True)
        assert abs(np.median(brighter) - np.median(found)) < 1e-4, path


def test_measured_correlation_is_that_of_the_decoded_series() -> None:
    x = scanned(frames=50, voxels=3000)
    unit = power_of_two_unit(float(x.std()), float(np.abs(x).max()))
    moments = VoxelMoments(
        x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64), x.min(0).astype(float), x.max(0).astype(float)
    )
    scale, _ = voxel_scale(moments, unit, 12.0)
    codes, _ = encode(x, scale, unit)
    trip = RoundTrip(np.ones(3000, dtype=bool), scale, unit)
    for part in np.array_split(np.arange(50), 3):
        trip.add(x[part], codes[part])
    np.testing.assert_allclose(trip.correlations(), correlations(x, decode(codes, scale, unit)), atol=1e-9)
    constant = RoundTrip(np.ones(5, dtype=bool), np.zeros((2, 5), dtype=np.float16), 1.0)
    constant.add(np.zeros((4, 5), dtype=np.float32), np.zeros((4, 5), dtype=np.int8))
    assert constant.correlations().size == 0
    assert SAMPLED_VOXELS > 1000


def off_lattice() -> nib.Nifti1Image:
    """An oblique image of smooth noise that reaches beyond the mask on every side, so that borders play no part."""
    shape, size = (90, 100, 90), 2.4
    turn = np.radians(5.0)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * size
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + [0, -18, 17]
    data = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.2) + 0.5
    return nib.Nifti1Image(data.astype(np.float32), affine)


@pytest.mark.parametrize(("interpolation", "sampler"), [("linear", grid_sampler), ("continuous", spline_sampler)])
def test_resampling_agrees_with_nilearn(interpolation: str, sampler: object) -> None:
    image = off_lattice()
    theirs = resample_img(
        image, GRID_AFFINE, GRID_SHAPE, interpolation=interpolation, copy_header=True, force_resample=True
    )
    theirs = np.asarray(theirs.dataobj).ravel()[WANTED]
    plan = sampler(image_frame(image.shape, image.affine, "image"), WANTED)  # type: ignore[operator]
    ours = plan(np.asarray(image.dataobj).reshape(1, -1, order="F"))[0]
    assert not plan.exact
    covered = theirs != 0
    assert covered.mean() > 0.99
    assert np.linalg.norm((ours - theirs)[covered]) < 1e-4 * np.linalg.norm(theirs[covered])


@pytest.mark.parametrize("codes", ["LAS", "PIR"])
def test_splines_give_the_same_bits_for_every_storage_order(tmp_path: Path, codes: str) -> None:
    settings = PreprocessingSettings(target_tr=None, interpolation="continuous")
    image = head(voxel_mm=9.0)
    one = prepare_run(save(image, tmp_path / "a"), settings, mask=SPARSE)
    other = prepare_run(save(stored_as(image, codes), tmp_path / "b"), settings, mask=SPARSE)
    np.testing.assert_array_equal(one.codes, other.codes)
    assert one.geometry == "resampled"


def test_image_on_the_lattice_is_not_interpolated_whatever_is_asked_for(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((91, 109, 91), dtype=np.float32), np.diag([2.0, 2, 2, 1]))
    image.affine[:3, 3] = [-90, -126, -72]
    frame = image_frame(image.shape, image.affine, "image")
    assert spline_sampler(frame, WANTED).exact
    np.testing.assert_array_equal(spline_sampler(frame, WANTED).take, grid_sampler(frame, WANTED).take)


def published(volume: np.ndarray, voxel_mm: tuple[float, ...]) -> np.ndarray:
    """What the published preprocessing and its loader make of an array: resized to 2 mm, cropped and padded to 96."""
    size = [int(np.round(n * mm / 2)) for n, mm in zip(volume.shape, voxel_mm, strict=True)]
    tensor = torch.from_numpy(volume)[None, None]
    out = torch.nn.functional.interpolate(tensor, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()
    for axis, length in enumerate(out.shape):
        start = max(0, (length - 96) // 2)
        out = np.take(out, range(start, min(length, start + 96)), axis=axis)
        spare = 96 - out.shape[axis]
        pad = [(0, 0)] * 3
        pad[axis] = (-(-spare // 2), spare // 2)
        out = np.pad(out, pad)
    return out


@pytest.mark.parametrize(
    ("shape", "voxel_mm"),
    [
        ((91, 109, 91), (2.0, 2.0, 2.0)),
        ((97, 115, 97), (2.0, 2.0, 2.0)),
        ((60, 72, 61), (3.0, 3.0, 3.3)),
        ((182, 150, 90), (1.0, 1.5, 2.4)),
    ],
)
def test_legacy_geometry_is_the_published_one(shape: tuple, voxel_mm: tuple) -> None:
    volume = np.random.default_rng(0).random(shape, dtype=np.float32)
    sampler = grid_sampler(legacy_frame(shape, voxel_mm), np.arange(96**3))
    ours = sampler(volume.reshape(1, -1, order="F"))[0].reshape(GRID_SHAPE)
    np.testing.assert_allclose(ours, published(volume, voxel_mm), atol=2e-5)


def test_legacy_geometry_mirrors_what_is_stored_the_other_way_round(tmp_path: Path) -> None:
    legacy = PreprocessingSettings(target_tr=None, geometry="neurostorm_legacy")
    image = head(voxel_mm=8.0)
    means = {}
    for codes in ("RAS", "LAS"):
        run = prepare_run(save(stored_as(image, codes), tmp_path / codes), legacy, assume_mni=True)
        assert run.geometry == "legacy"
        volume = np.zeros(GRID_SHAPE)
        volume[brain_mask()] = run.frames(0, 1)[0]
        brain = brain_mask(dilated=False)
        means[codes] = volume[:48][brain[:48]].mean() / volume[48:][brain[48:]].mean()
    assert means["RAS"] > 1.15  # the test's head is brighter on its left
    assert means["LAS"] < 1 / 1.1
