"""The published preprocessing's geometry, for parity with models trained on it: array indices instead of the affine.

In: an image's shape and voxel sizes. Out: a `Frame` by which `grid_sampler` resizes the array to 2 mm (half-pixel
centres), centres it on the 96 x 96 x 96 grid, and crops and pads (one voxel more before than behind where uneven),
without regard to its orientation. An image stored in RAS on the 2 mm MNI152 lattice comes out as by its affine; one
stored in LAS is mirrored.
"""

import numpy as np

from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.grid import Frame

TARGET_MM = 2.0


def legacy_frame(shape: tuple[int, int, int], voxel_mm: tuple[float, ...]) -> Frame:
    """An image's array laid on the grid by its indices.

    Parameters
    ----------
    shape
        Voxels along the file's axes.
    voxel_mm
        Their sizes in mm, as the header says.
    """
    to_voxel = np.eye(4)
    for axis, (size, mm) in enumerate(zip(shape, voxel_mm, strict=True)):
        resized = max(1, round(size * mm / TARGET_MM))
        spare = GRID_SHAPE[axis] - resized
        before = -(-spare // 2)  # rounded up, for padding; the same rounds a crop towards 0
        ratio = size / resized
        to_voxel[axis, axis] = ratio
        to_voxel[axis, 3] = (0.5 - before) * ratio - 0.5
    return Frame(shape, shape, (0, 1, 2), (False, False, False), to_voxel @ np.linalg.inv(GRID_AFFINE))
