"""Which voxels of the canonical grid are stored: the MNI152 brain mask of nilearn, dilated by two voxels.

The template has 1 mm voxels on the same millimetre lattice as the grid, so every second voxel is taken as it is:
nothing is interpolated and the mask is the same on every machine. The mask's hash travels with every corpus.
"""

import functools
import hashlib
import warnings

import numpy as np
from scipy import ndimage

from sharding.errors import ShardingError
from sharding.format import GRID_AFFINE, GRID_SHAPE

DILATION_VOXELS = 2
"Rim kept around the brain: registration is never perfect and the template's edge is a threshold."


@functools.lru_cache(maxsize=2)
def brain_mask(dilated: bool = True) -> np.ndarray:
    """MNI152 brain on the canonical grid.

    Parameters
    ----------
    dilated
        With the rim of two voxels (what a corpus stores), or the brain alone (what statistics are taken over).

    Returns
    -------
    bool (96, 96, 96), read-only.
    """
    mask = _on_grid(*_nilearn_mask())
    if dilated:
        mask = ndimage.binary_dilation(mask, iterations=DILATION_VOXELS)
    mask.setflags(write=False)
    return mask


def mask_sha256(mask: np.ndarray) -> str:
    """Hash of a mask on the grid: its shape and its packed bits in C order."""
    digest = hashlib.sha256(repr(tuple(mask.shape)).encode())
    digest.update(np.packbits(np.ascontiguousarray(mask, dtype=bool).ravel()).tobytes())
    return digest.hexdigest()


def _nilearn_mask() -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn warns about its own int8 image
        from nilearn.datasets import load_mni152_brain_mask

        image = load_mni152_brain_mask(resolution=1)
    return np.asarray(image.dataobj) > 0, np.asarray(image.affine)


def _on_grid(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Take the voxels of a 1 mm RAS image that lie on the grid's points; False outside the image."""
    start = GRID_AFFINE[:3, 3] - affine[:3, 3]
    if not (np.array_equal(affine[:3, :3], np.eye(3)) and np.array_equal(start, np.round(start))):
        raise ShardingError(f"nilearn's MNI152 template has an unexpected affine {affine.tolist()}")
    out = np.zeros(GRID_SHAPE, dtype=bool)
    source = [int(start[axis]) + 2 * np.arange(size) for axis, size in enumerate(GRID_SHAPE)]
    inside = [(index >= 0) & (index < values.shape[axis]) for axis, index in enumerate(source)]
    out[np.ix_(*inside)] = values[np.ix_(*[index[keep] for index, keep in zip(source, inside, strict=True)])]
    return out
