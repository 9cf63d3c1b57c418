"""Small NIfTI runs for tests: a head that overlaps the MNI brain and is brighter on its left, saved as asked."""

from pathlib import Path

import nibabel as nib
import numpy as np

NAME = "sub-01_task-rest_bold.nii.gz"


def head(voxel_mm: float = 8.0, volumes: int = 24, tr: float = 1.0, seed: int = 0) -> nib.Nifti1Image:
    """A run of float32 volumes in RAS with an ellipsoid of signal where the MNI brain is."""
    rng = np.random.default_rng(seed)
    origin = np.array([-90.0, -126.0, -72.0])
    shape = tuple(int(n) for n in np.array([180, 216, 180]) // voxel_mm + 1)
    mm = np.moveaxis(np.indices(shape), 0, -1) * voxel_mm + origin
    inside = (((mm - [0, -18, 8]) / [72, 90, 68]) ** 2).sum(axis=-1) < 1
    # Each voxel its own level, falling to the right: nothing about it is symmetric.
    level = inside * (800 - 3 * mm[..., 0] + 20 * rng.standard_normal(shape))
    wave = np.sin(2 * np.pi * 0.05 * tr * np.arange(volumes))
    data = level[..., None] * (1 + 0.01 * wave + 0.01 * rng.standard_normal((*shape, volumes)))
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = origin
    return with_header(nib.Nifti1Image(data.astype(np.float32), affine), tr)


def with_header(
    image: nib.Nifti1Image, tr: float, unit: str = "sec", space_code: int = 4, affine: np.ndarray | None = None
) -> nib.Nifti1Image:
    """Set repetition time, time unit and space of an image."""
    affine = image.affine if affine is None else affine
    image.set_sform(affine, code=space_code)
    image.set_qform(affine, code=space_code)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = tr
    return image


def stored_as(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The same brain with its axes stored in another order or direction, such as LAS or PSR."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    return with_header(
        nib.Nifti1Image(np.ascontiguousarray(turned.dataobj), turned.affine), float(image.header["pixdim"][4])
    )


def save(image: nib.Nifti1Image, folder: Path, name: str = NAME) -> Path:
    """Write an image; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(image, folder / name)
    return folder / name
