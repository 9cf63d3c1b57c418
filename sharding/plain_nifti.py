"""Read a mask as `mask_image.mask_bytes` writes it, without nibabel: its import takes as long as all else at a start.

Only the plainest layout is known: little-endian NIfTI-1, one byte a voxel, no scaling, the grid's own shape and affine.
Whatever is different is None, for nibabel to read or to refuse. No more is unpacked than such a file has.
"""

import gzip
from pathlib import Path

import numpy as np

from sharding.format import GRID_AFFINE, GRID_SHAPE

HEADER_BYTES = 352
HEADER = np.dtype(
    {
        "names": ["size", "dim", "type", "offset", "slope", "inter", "sform_code", "sform", "magic"],
        "formats": ["<i4", ("<i2", 8), "<i2", "<f4", "<f4", "<f4", "<i2", ("<f4", (3, 4)), "S4"],
        "offsets": [0, 40, 70, 108, 112, 116, 254, 280, 344],
        "itemsize": HEADER_BYTES,
    }
)
"The fields of a NIfTI-1 header (nifti1.h) that decide what the voxels are and where they lie."

UINT8 = 2
"DT_UINT8."


def plain_mask(path: Path) -> np.ndarray | None:
    """Return the mask in a .nii.gz file, bool (96, 96, 96); None where it is not laid out in the one known way.

    Raises
    ------
    OSError, EOFError, zlib.error
        The file cannot be read or unpacked.
    """
    num_voxels = int(np.prod(GRID_SHAPE))
    with gzip.open(path) as file:
        data = file.read(HEADER_BYTES + num_voxels + 1)
    if len(data) != HEADER_BYTES + num_voxels:
        return None
    header = np.frombuffer(data, HEADER, 1)[0]
    kind = (int(header["size"]), bytes(header["magic"]), int(header["type"]), float(header["offset"]))
    if kind != (348, b"n+1", UINT8, float(HEADER_BYTES)) or header["dim"].tolist() != [3, *GRID_SHAPE, 1, 1, 1, 1]:
        return None
    if (header["slope"], header["inter"]) != (1, 0) or header["sform_code"] <= 0:
        return None
    if not np.allclose(header["sform"], GRID_AFFINE[:3]):
        return None
    return np.frombuffer(data, np.uint8, num_voxels, HEADER_BYTES).reshape(GRID_SHAPE, order="F") > 0
