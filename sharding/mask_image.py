"""A mask on the canonical grid as a NIfTI file, and back (bool); and any other map on the grid as a file."""

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from sharding.errors import ShardingError
from sharding.format import GRID_AFFINE, GRID_SHAPE


def mask_bytes(mask: np.ndarray) -> bytes:
    """Return a mask as a .nii.gz file in MNI152 space; the same mask gives the same bytes."""
    return map_bytes(mask.astype(np.uint8))


def map_bytes(values: np.ndarray) -> bytes:
    """Return a map (96, 96, 96) of a type that NIfTI knows as a .nii.gz file; the same map gives the same bytes."""
    if values.shape != GRID_SHAPE:
        raise ShardingError(f"map of shape {values.shape}: expected the canonical grid {GRID_SHAPE}")
    image = nib.Nifti1Image(values, GRID_AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(GRID_AFFINE, code=4)
    image.set_qform(GRID_AFFINE, code=4)
    return gzip.compress(image.to_bytes(), mtime=0)


def read_mask(path: Path) -> np.ndarray:
    """Return the mask in a file.

    Raises
    ------
    ShardingError
        It cannot be read, or lies on another grid.
    """
    try:
        image = nib.load(path)
        values, affine = np.asarray(image.dataobj), image.affine  # type: ignore[attr-defined]
    except (OSError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise ShardingError(f"{path}: cannot be read as a mask ({error})") from error
    if values.shape != GRID_SHAPE or not np.allclose(affine, GRID_AFFINE):
        raise ShardingError(f"{path}: grid {values.shape} is not the canonical {GRID_SHAPE} RAS 2 mm grid")
    return values > 0
