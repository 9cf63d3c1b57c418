"""A label image on the canonical grid, and the table of its labels.

In: a 3D label image (NIfTI, any orientation and grid) and a table (TSV). Out: int32 (96, 96, 96) and names. Labels are
brought over by the image's affine and nearest neighbour, so an atlas stored as LAS, RAS or LIA gives the same array; an
atlas is taken to be in MNI152 space. By file order, as the published code does it, only where that is asked for.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sharding.errors import InputError
from sharding.format import GRID_SHAPE
from sharding.grid import grid_sampler, image_frame
from sharding.read import Volume, read_volume

MAX_LABEL = 100_000


@dataclass(frozen=True)
class Label:
    """A region of an atlas."""

    index: int
    "Its value in the label image."
    name: str
    group: str = ""
    "Larger part it belongs to, where the table says so."


def load_label_image_on_grid(path: str | Path, file_order: bool = False) -> np.ndarray:
    """Bring a label image to the canonical grid.

    Parameters
    ----------
    path
        3D NIfTI in MNI152 space.
    file_order
        Centre the image on the grid in the order of the file, whatever its affine says about left and right, as the
        published code does with a 2 mm image. A LAS atlas comes out mirrored; for parity only.

    Returns
    -------
    int32 (96, 96, 96): the label at each voxel, 0 where there is none.

    Raises
    ------
    InputError
        The file cannot be read, is not 3D, holds no whole numbers, or does not reach the grid.
    """
    path = Path(path)
    volume = read_label_volume(path)
    if file_order:
        labels = _centred(volume, path)
    else:
        frame = image_frame(volume.shape, volume.affine, str(path))
        labels = grid_sampler(frame, np.arange(np.prod(GRID_SHAPE))).nearest(volume.values).reshape(GRID_SHAPE)
    if not labels.any():
        raise InputError(f"{path}: no label lies on the MNI152 grid; the atlas must be in MNI152 space")
    return labels


def read_label_volume(path: Path) -> Volume:
    """Read a label image as it is stored, its values as int32; InputError as for `load_label_image_on_grid`."""
    volume = read_volume(path)
    values = volume.values
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(values, np.round(values))):
        raise InputError(f"{path}: values are not whole numbers; a label image is needed")
    if values.min() < 0 or values.max() > MAX_LABEL:
        raise InputError(f"{path}: labels from {values.min():g} to {values.max():g}; expected 0 to {MAX_LABEL}")
    return Volume(values.astype(np.int32), volume.affine, volume.shape)


def _centred(volume: Volume, path: Path) -> np.ndarray:
    """Crop and pad about the centre in file order: of an odd difference, the larger half of a pad comes first."""
    sizes = np.linalg.norm(volume.affine[:3, :3], axis=0)
    if not np.allclose(sizes, 2.0, atol=1e-3):
        shown = " x ".join(f"{size:.3g}" for size in sizes)
        raise InputError(f"{path}: voxels of {shown} mm; file order needs a 2 mm image: leave it to the affine")
    source = volume.values.reshape(volume.shape, order="F")
    labels = np.zeros(GRID_SHAPE, dtype=np.int32)
    taken, placed = [], []
    for have, want in zip(volume.shape, GRID_SHAPE, strict=True):
        cut, pad = max(have - want, 0) // 2, -(-max(want - have, 0) // 2)
        length = min(have, want)
        taken.append(slice(cut, cut + length))
        placed.append(slice(pad, pad + length))
    labels[tuple(placed)] = source[tuple(taken)]
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
