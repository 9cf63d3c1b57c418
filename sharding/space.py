"""Is this image in MNI152 space? What it says, and whether its head lies where the MNI brain is.

What the file name says (BIDS entity space-...) goes before what the header says (NIfTI transform code); an image that
says nothing passes if it overlaps. Nothing is registered here: an image in another space is refused, or, with
`--assume-mni`, taken as it lies.
"""

import re
from dataclasses import dataclass

import numpy as np

from sharding.errors import InputError
from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.grid import Frame, Sampler
from sharding.mask import brain_mask
from sharding.read import ImageInfo

MIN_BRAIN_COVERED = 0.5
"Least share of the MNI brain that the image's signal must cover."
MIN_HEAD_IN_MASK = 0.5
"Least share of the image's signal that must lie inside the (dilated) MNI brain."
SIGNAL_LEVEL = 0.15
"A voxel has signal where it exceeds this share of the 98th percentile of the non-zero ones."

REMEDY = "give an image in MNI152 space, or --assume-mni to take it as it lies"


@dataclass(frozen=True)
class Overlap:
    """How an image's signal and the MNI brain overlap, as fractions."""

    brain_covered: float
    head_in_mask: float


def claimed_space(info: ImageInfo, assume_mni: bool) -> str:
    """What a file says about its space.

    Raises
    ------
    InputError
        It says another space than MNI152, or has no transform at all, and `assume_mni` is off.
    """
    entity = re.search(r"(?:^|_)space-([A-Za-z0-9+]+)", info.path.name)
    if assume_mni:
        return "assumed"
    if info.space_code == 0:  # whatever the name says: where the voxels lie, and which side is left, is made up
        raise InputError(
            f"{info.path}: its header says nowhere that its voxels lie (sform and qform code 0); "
            "write its affine into it with a code, or --assume-mni to take it as centred"
        )
    if entity:
        if entity[1].startswith("MNI152"):
            return "file name"
        raise InputError(f"{info.path}: its name says space-{entity[1]}, not MNI152; {REMEDY}")
    if info.space_code == 4:
        return "header"
    if info.space_code in (1, 3):
        said = {1: "scanner space (native)", 3: "Talairach space"}[info.space_code]
        raise InputError(f"{info.path}: its header says {said}, code {info.space_code}, not MNI152; {REMEDY}")
    return "overlap"


def overlap(info: ImageInfo, frame: Frame, sampler: Sampler, wanted: np.ndarray, frames: np.ndarray) -> Overlap:
    """Compare where some frames have signal with where the MNI brain is.

    Parameters
    ----------
    info, frame
        The image and its space.
    sampler, wanted
        Plan of the stored grid voxels, and their positions in the flattened grid.
    frames
        float32 (F, voxels), finite; the first frames of the run.
    """
    level = np.abs(frames).mean(axis=0)
    if not level.any():
        raise InputError(f"{info.path}: its first {len(frames)} volumes are 0 throughout; no signal")
    signal = level > SIGNAL_LEVEL * np.percentile(level[level > 0], 98)
    brain = brain_mask(dilated=False).ravel()[wanted]
    covered = sampler.nearest(signal)[brain]
    in_mask = brain_mask().ravel()[_grid_position(info, np.flatnonzero(signal))]
    return Overlap(float(covered.mean()), float(in_mask.mean()))


def check_overlap(info: ImageInfo, found: Overlap, assume_mni: bool) -> None:
    """Refuse an image whose signal hardly overlaps the MNI brain, unless `assume_mni`."""
    if assume_mni:
        return
    if found.brain_covered < MIN_BRAIN_COVERED or found.head_in_mask < MIN_HEAD_IN_MASK:
        raise InputError(
            f"{info.path}: hardly overlaps the MNI brain (covers {found.brain_covered:.0%} of it, "
            f"{found.head_in_mask:.0%} of its signal is inside; {MIN_BRAIN_COVERED:.0%} expected of both); {REMEDY}"
        )


def _grid_position(info: ImageInfo, voxels: np.ndarray) -> np.ndarray:
    """Nearest flattened grid position of image voxels (file order); a corner, never brain, for those off the grid."""
    ijk = np.stack(np.unravel_index(voxels, info.shape, order="F"))
    mm = info.affine[:3, :3] @ ijk + info.affine[:3, 3:]
    grid = np.round((mm - GRID_AFFINE[:3, 3:]) / 2).astype(np.int64)
    inside = ((grid >= 0) & (grid < np.array(GRID_SHAPE)[:, None])).all(axis=0)
    return np.where(inside, np.ravel_multi_index(tuple(np.clip(grid, 0, 95)), GRID_SHAPE), 0)
