"""Which voxels of the canonical grid are stored: the MNI152 brain mask of nilearn, dilated by two voxels.

nilearn's template has 1 mm voxels on the same millimetre lattice as the grid, so every second voxel was taken as it
is, and the result is kept in mni152_brain.npz: the mask is the same on every machine and with every nilearn, and a
process that makes shards need not import it (a test compares the two). The mask's hash travels with every corpus.

The file derives from the ICBM 2009a nonlinear symmetric template, Copyright (C) 1993-2009 Louis Collins, McConnell
Brain Imaging Centre, Montreal Neurological Institute, McGill University. Permission to use, copy, modify, and
distribute this software and its documentation for any purpose and without fee is hereby granted, provided that the
above copyright notice appear in all copies. The authors and McGill University make no representations about the
suitability of this software for any purpose. It is provided "as is" without express or implied warranty.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np

from sharding.format import GRID_SHAPE

DILATION_VOXELS = 2
"Rim kept around the brain: registration is never perfect and the template's edge is a threshold."

BRAIN_FILE = Path(__file__).with_name("mni152_brain.npz")
"The brain alone: `bits`, uint8, one bit a voxel of the grid in C order."


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
    with np.load(BRAIN_FILE) as stored:
        mask = np.unpackbits(stored["bits"]).reshape(GRID_SHAPE).astype(bool)
    if dilated:
        from scipy import ndimage  # here, because whoever reads a corpus takes its own mask and need not wait for it

        mask = ndimage.binary_dilation(mask, iterations=DILATION_VOXELS)
    mask.setflags(write=False)
    return mask


def mask_sha256(mask: np.ndarray) -> str:
    """Hash of a mask on the grid: its shape and its packed bits in C order."""
    digest = hashlib.sha256(repr(tuple(mask.shape)).encode())
    digest.update(np.packbits(np.ascontiguousarray(mask, dtype=bool).ravel()).tobytes())
    return digest.hexdigest()
