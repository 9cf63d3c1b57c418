"""How much of each patch each region fills: by the voxels it has there, or all of it by vote.

In: labels on the canonical grid, int (96, 96, 96). Out: int32 (R, P), voxels of region r in patch p; rows as in
`region_labels`, patches in C order. Which patches a mask hides is decided by what reads this, not here.
"""

from collections.abc import Sequence

import numpy as np

from sharding.errors import InputError
from sharding.format import MIN_LABELLED


def region_labels(labels: np.ndarray) -> np.ndarray:
    """Labels that occur, ascending and without 0: int32 (R,), the rows of `patch_occupancy`."""
    found = np.unique(labels)
    return found[found != 0].astype(np.int32)


def patch_occupancy(labels: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """How many voxels of each patch each region fills.

    Parameters
    ----------
    labels
        int (X, Y, Z), 0 for none.
    patch
        Voxels of a patch along x, y, z; each divides its axis. Further entries (time) are refused.

    Returns
    -------
    int32 (R, P): voxels of region r (in the order of `region_labels`) in patch p (C order over the grid of patches).

    Raises
    ------
    InputError
        A patch does not divide the grid.
    """
    if len(patch) != 3 or any(step < 1 or size % step for size, step in zip(labels.shape, patch, strict=True)):
        raise InputError(f"patch {tuple(patch)} does not divide the grid {labels.shape}")
    counts = [size // step for size, step in zip(labels.shape, patch, strict=True)]
    blocks = labels.reshape(counts[0], patch[0], counts[1], patch[1], counts[2], patch[2])
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(np.prod(counts), np.prod(patch))
    regions = region_labels(labels)
    filled = np.zeros((len(regions), len(blocks)), dtype=np.int32)
    inside = blocks != 0
    row = np.searchsorted(regions, blocks[inside])
    column = np.broadcast_to(np.arange(len(blocks))[:, None], blocks.shape)[inside]
    np.add.at(filled, (row, column), 1)
    return filled


def voted(occupancy: np.ndarray, patch_voxels: int) -> np.ndarray:
    """Give each patch with any label wholly to the region that has most of it; of equals, to the lower label.

    This is the map of the published region masks (Region-aware reconstruction, arXiv 2511.00443, as its code computes
    it): one labelled voxel claims a whole patch, and a region that never has most of a patch vanishes.

    Parameters
    ----------
    occupancy
        int (R, P) voxels, as from `patch_occupancy`.
    patch_voxels
        Voxels of a whole patch.

    Returns
    -------
    int32 (R, P): patch_voxels where region r won patch p, else 0.
    """
    out = np.zeros(occupancy.shape, dtype=np.int32)
    labelled = np.flatnonzero(occupancy.any(axis=0))
    out[occupancy[:, labelled].argmax(axis=0), labelled] = patch_voxels
    return out


def maskable_patches(occupancy: np.ndarray, patch_voxels: int) -> np.ndarray:
    """Patches that a region mask may hide, bool (P,): at least MIN_LABELLED of their voxels carry a label."""
    return occupancy.sum(axis=0) >= MIN_LABELLED * patch_voxels


def own_patches(occupancy: np.ndarray, patch_voxels: int) -> np.ndarray:
    """Patches that each region decides alone, bool (R, P): maskable, and half of what is labelled there is its own."""
    half = 2 * occupancy >= np.maximum(occupancy.sum(axis=0), 1)
    return half & maskable_patches(occupancy, patch_voxels)
