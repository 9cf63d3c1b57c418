"""The canonical grid: exact where it can be, the same bits for every storage order, in agreement with nilearn."""

from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask

from sharding.errors import InputError
from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.grid import axis_codes, grid_sampler, image_frame
from sharding.mask import DILATION_VOXELS, brain_mask, mask_sha256
from tests.helpers.images import stored_as, with_header

WANTED = np.flatnonzero(brain_mask())
ORIENTATIONS = ("RAS", "LAS", "LPI", "PSR", "IAL", "SLP")


def rotation(degrees: float) -> np.ndarray:
    """A rotation about x and then z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def volume(shape: tuple[int, ...], voxel: float, origin: tuple[float, ...], degrees: float = 0.0) -> nib.Nifti1Image:
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) * voxel
    affine[:3, 3] = origin
    data = np.random.default_rng(0).standard_normal((*shape, 1)).astype(np.float32)
    return with_header(nib.Nifti1Image(data, affine), 1.0)


def sampled(image: nib.Nifti1Image) -> tuple[np.ndarray, bool]:
    """Wanted voxels of an image as a file would hold it, and whether they were taken exactly."""
    affine = image.affine.astype(np.float32).astype(np.float64)
    sampler = grid_sampler(image_frame(image.shape[:3], affine, "image"), WANTED)
    frames = np.asarray(image.dataobj).reshape(1, -1, order="F")
    return sampler(frames)[0], sampler.exact


def world_values(image: nib.Nifti1Image, mm: np.ndarray) -> np.ndarray:
    """Values at the voxels nearest to points (N, 3) in mm; 0 outside. Written without the code under test."""
    index = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), mm)).astype(int)
    inside = ((index >= 0) & (index < image.shape[:3])).all(axis=1)
    data = np.asarray(image.dataobj)[..., 0]
    return np.where(inside, data[tuple(np.clip(index, 0, np.array(image.shape[:3]) - 1).T)], 0)


WANTED_MM = nib.affines.apply_affine(GRID_AFFINE, np.argwhere(brain_mask()))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_image_on_the_lattice_is_never_interpolated(codes: str) -> None:
    image = stored_as(volume((91, 109, 91), 2.0, (-90, -126, -72)), codes)
    values, exact = sampled(image)
    assert axis_codes(image.affine) == codes
    assert exact
    np.testing.assert_array_equal(values, world_values(image, WANTED_MM))


def test_image_smaller_than_the_brain_is_padded_with_zeros() -> None:
    image = volume((40, 50, 20), 2.0, (-40, -60, -10))
    values, exact = sampled(image)
    assert exact
    np.testing.assert_array_equal(values, world_values(image, WANTED_MM))
    reached = ((WANTED_MM >= [-40, -60, -10]) & (WANTED_MM <= [38, 38, 28])).all(axis=1)
    assert not values[~reached].any()
    assert (values[reached] != 0).all()


@pytest.mark.parametrize(
    "image",
    [
        volume((61, 73, 61), 3.0, (-90, -126, -72)),
        volume((80, 95, 80), 2.4, (-97.3331, -120.717, -80.2293), degrees=8.0),
        volume((6, 10, 10), 25.0, (-62.5, -112.5, -112.5)),
        volume((91, 109, 91), 2.0, (-91, -127, -73)),
    ],
    ids=["3mm", "oblique", "25mm", "half-voxel-off"],
)
def test_every_storage_order_gives_the_same_bits(image: nib.Nifti1Image) -> None:
    first, exact = sampled(image)
    assert not exact
    assert np.abs(first).max() > 0.5
    for codes in ORIENTATIONS[1:]:
        np.testing.assert_array_equal(sampled(stored_as(image, codes))[0], first)


def test_linear_ramp_is_reproduced_by_resampling() -> None:
    image = volume((60, 70, 60), 3.3, (-100, -115, -80), degrees=12.0)
    mm = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(image.shape[:3]), 0, -1))
    ramp = (mm @ [1.0, -2.0, 0.5])[..., None].astype(np.float32)
    values, _ = sampled(nib.Nifti1Image(ramp, image.affine))
    index = nib.affines.apply_affine(np.linalg.inv(image.affine), WANTED_MM)
    inner = ((index >= 0) & (index <= np.array(image.shape[:3]) - 1)).all(axis=1)
    assert inner.mean() > 0.6
    np.testing.assert_allclose(values[inner], (WANTED_MM @ [1.0, -2.0, 0.5])[inner], atol=5e-3)


def test_border_value_reaches_half_a_voxel_and_no_farther() -> None:
    image = volume((3, 3, 3), 20.0, (-20, -20, -20))
    image = nib.Nifti1Image(np.ones((3, 3, 3, 1), dtype=np.float32), image.affine)
    values, _ = sampled(image)
    within = (np.abs(WANTED_MM) <= 30).all(axis=1)
    np.testing.assert_allclose(values[within], 1, rtol=1e-6)
    assert not values[~within].any()


BAD_AFFINES = {
    "NaN or Inf": np.full((4, 4), np.nan),
    "singular": np.diag([2.0, 0.0, 2.0, 1.0]),
    "singular (parallel axes)": np.array([[2.0, 2.0, 0, 0], [0, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]]),
    "voxels of": np.diag([2000.0, 2.0, 2.0, 1.0]),
}


@pytest.mark.parametrize("reason", BAD_AFFINES)
def test_useless_affine_is_refused_by_name(reason: str) -> None:
    with pytest.raises(InputError, match=rf"^run\.nii: .*{reason.split(' (')[0]}"):
        image_frame((10, 10, 10), BAD_AFFINES[reason], "run.nii")


def test_mask_is_the_brain_with_a_rim_of_two_voxels() -> None:
    brain, stored = brain_mask(dilated=False), brain_mask()
    assert stored.shape == GRID_SHAPE
    assert stored[brain].all()
    # City-block distance to the brain of every stored voxel is at most two, and every such voxel is stored.
    grown = brain.copy()
    for _ in range(DILATION_VOXELS):
        padded = np.pad(grown, 1)
        near = [np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1)]
        grown = grown | np.any(near, axis=0)
    np.testing.assert_array_equal(stored, grown)
    litres = brain.sum() * 8 / 1e6
    assert 1.7 < litres < 2.0
    centre = nib.affines.apply_affine(GRID_AFFINE, np.argwhere(brain)).mean(axis=0)
    np.testing.assert_allclose(centre, [0, -20, 10], atol=6)


def test_mask_is_that_of_nilearn() -> None:
    image = load_mni152_brain_mask(resolution=1)
    lattice = np.round(nib.affines.apply_affine(np.linalg.inv(image.affine) @ GRID_AFFINE, np.indices(GRID_SHAPE).T))
    inside = ((lattice >= 0) & (lattice < image.shape)).all(axis=-1)
    x, y, z = np.where(inside[..., None], lattice, 0).astype(int).T
    np.testing.assert_array_equal(brain_mask(dilated=False), (np.asarray(image.dataobj)[x, y, z] > 0) & inside.T)


def test_mask_hash_tells_masks_apart() -> None:
    other = brain_mask().copy()
    other[48, 48, 48] = ~other[48, 48, 48]
    assert mask_sha256(other) != mask_sha256(brain_mask())
    assert mask_sha256(other.astype(np.uint8)) == mask_sha256(other)


def test_threads_that_share_a_sampler_do_not_disturb_each_other() -> None:
    """Runs of one space share their plan; each thread has memory of its own to work in."""
    image = volume((40, 48, 40), 4.5, (-88.0, -124.0, -70.0))
    sampler = grid_sampler(image_frame(image.shape[:3], image.affine, "image"), WANTED)
    assert not sampler.exact
    runs = np.random.default_rng(1).standard_normal((8, 16, 40 * 48 * 40)).astype(np.float32)
    alone = [sampler(run) for run in runs]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(sampler, [*runs, *runs, *runs]), alone * 3, strict=True):
            np.testing.assert_array_equal(found, expected)
