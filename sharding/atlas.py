"""Atlases on the canonical grid: labels of every voxel, names of labels, and which patches a region lies in.

In: a 3D label image (NIfTI, any orientation and grid) and a table of its labels. Out: int32 (96, 96, 96) and the
voxels of each patch that each region fills. Labels are brought over by the image's affine and nearest neighbour, so an
atlas stored as LAS, RAS or LIA gives the same array; an atlas is taken to be in MNI152 space.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sharding.errors import InputError
from sharding.format import GRID_SHAPE
from sharding.grid import grid_sampler, image_frame
from sharding.read import read_volume

MAX_LABEL = 100_000


@dataclass(frozen=True)
class Label:
    """A region of an atlas."""

    index: int
    "Its value in the label image."
    name: str
    group: str = ""
    "Larger part it belongs to, where the table says so."


def load_label_image_on_grid(path: str | Path) -> np.ndarray:
    """Bring a label image to the canonical grid.

    Returns
    -------
    int32 (96, 96, 96): the label at each voxel, 0 where there is none.

    Raises
    ------
    InputError
        The file cannot be read, is not 3D, holds no whole numbers, or does not reach the grid.
    """
    path = Path(path)
    volume = read_volume(path)
    values = volume.values
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(values, np.round(values))):
        raise InputError(f"{path}: values are not whole numbers; a label image is needed")
    if values.min() < 0 or values.max() > MAX_LABEL:
        raise InputError(f"{path}: labels from {values.min():g} to {values.max():g}; expected 0 to {MAX_LABEL}")
    frame = image_frame(volume.shape, volume.affine, str(path))
    sampler = grid_sampler(frame, np.arange(np.prod(GRID_SHAPE)))
    labels = sampler.nearest(values.astype(np.int32)).reshape(GRID_SHAPE)
    if not labels.any():
        raise InputError(f"{path}: no label lies on the MNI152 grid; the atlas must be in MNI152 space")
    return labels


def load_labels_tsv(path: str | Path) -> list[Label]:
    """Read a table (tab-separated) with the columns index, name and, optionally, group.

    Raises
    ------
    InputError
        The file is missing, lacks a column, or names a label twice.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error
    if not rows or not {"index", "name"} <= set(rows[0]):
        raise InputError(f"{path}: expected tab-separated columns index, name and, optionally, group")
    labels: dict[int, Label] = {}
    for number, row in enumerate(rows, start=1):
        try:
            index = int(row["index"])
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, row {number}: index is {row['index']!r}; expected a whole number") from error
        if index in labels:
            raise InputError(f"{path}, row {number}: label {index} is named twice")
        labels[index] = Label(index, row["name"] or f"label_{index}", row.get("group") or "")
    return [labels[index] for index in sorted(labels)]


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
    if len(patch) != 3 or any(size % step for size, step in zip(labels.shape, patch, strict=True)):
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
