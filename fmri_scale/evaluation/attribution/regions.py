"""An atlas on the voxels of a corpus or release: names, groups, and where each region lies.

In: a label image in MNI152 space and the table of its labels. Out: `Regions`. Regions without a stored voxel are left
out and named. Shape suffixes: V stored voxels, R regions, XYZ voxels of the model's volume.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from fmri_scale.errors import DataError
from fmri_scale.evaluation.tables import name_some
from fmri_scale.log import get_logger
from sharding.atlas import load_label_image_on_grid, load_labels_tsv
from sharding.format import GRID_SHAPE

_log = get_logger(__name__)


class Pieces(NamedTuple):
    """Parts of regions that lie in one voxel of a model's volume, K of them.

    Attributes
    ----------
    region, voxel
        int64 (K,): which region, and which voxel of the volume (C order).
    mean
        sparse (K, V): what stored voxels add to that voxel of the volume.
    """

    region: np.ndarray
    voxel: np.ndarray
    mean: sparse.csr_array


@dataclass(frozen=True, eq=False)
class Regions:
    """R regions over V stored voxels.

    Attributes
    ----------
    name, group
        Of each region; group is "" where the table has none.
    of_voxel
        int64 (V,): region of each stored voxel, -1 for none.
    mask
        bool (96, 96, 96): the stored voxels.
    """

    name: list[str]
    group: list[str]
    of_voxel: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.name)

    @property
    def num_voxels(self) -> np.ndarray:
        """int64 (R,)."""
        return np.bincount(self.of_voxel[self.of_voxel >= 0], minlength=len(self))

    def voxels(self, region: int) -> np.ndarray:
        """int64: stored voxels of a region."""
        return np.flatnonzero(self.of_voxel == region)

    def pieces(self, image_size: Sequence[int]) -> "Pieces":
        """Cut regions at the voxels of a model's volume, each the mean of a block of the grid."""
        return _pieces(self, tuple(image_size))

    def on_grid(self, values: np.ndarray) -> np.ndarray:
        """Map with the value of its region at every voxel, float32 (96, 96, 96); 0 elsewhere."""
        out = np.zeros(GRID_SHAPE, dtype=np.float32)
        stored = np.zeros(len(self.of_voxel), dtype=np.float32)
        inside = self.of_voxel >= 0
        stored[inside] = values[self.of_voxel[inside]]
        out[self.mask] = stored
        return out

    def grouped(self, values: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Sum of values (..., R) over the regions of each group: names, and (..., groups)."""
        names = sorted({group for group in self.group if group})
        member = np.array([[group == name for name in names] for group in self.group], dtype=np.float64)
        return names, values @ member if names else values[..., :0]


@functools.lru_cache(maxsize=2)
def _pieces(regions: Regions, image_size: tuple[int, ...]) -> Pieces:
    size, grid = np.array(image_size), np.array(GRID_SHAPE)
    ijk = np.stack(np.unravel_index(np.flatnonzero(regions.mask), GRID_SHAPE))
    coarse = np.ravel_multi_index(tuple(ijk * size[:, None] // grid[:, None]), tuple(size))
    inside = np.flatnonzero(regions.of_voxel >= 0)
    cells = regions.of_voxel[inside] * np.prod(size) + coarse[inside]
    cell, piece = np.unique(cells, return_inverse=True)
    weight = np.full(len(inside), np.prod(size) / np.prod(grid), dtype=np.float32)
    mean = sparse.coo_array((weight, (piece, inside)), shape=(len(cell), len(regions.of_voxel))).tocsr()
    return Pieces(cell // np.prod(size), cell % np.prod(size), mean)


def load_regions(atlas: str | Path, labels: str | Path | None, mask: np.ndarray) -> Regions:
    """Bring an atlas to the stored voxels.

    Parameters
    ----------
    atlas
        Label image (NIfTI), MNI152 space.
    labels
        TSV with index, name and, optionally, group; None names regions by their label.
    mask
        bool (96, 96, 96).

    Raises
    ------
    InputError, DataError
        The atlas cannot be used, or none of its regions lies in the mask.
    """
    at_voxel = load_label_image_on_grid(atlas)[mask]
    found = np.unique(at_voxel[at_voxel > 0])
    if not len(found):
        raise DataError(f"{atlas}: no region lies inside the mask")
    table = {label.index: label for label in load_labels_tsv(labels)} if labels else {}
    unnamed = [int(index) for index in found if table and index not in table]
    if unnamed:
        raise DataError(f"{labels}: labels {name_some([str(i) for i in unnamed])} of {atlas} are not in the table")
    outside = [label.name for index, label in table.items() if index not in set(found.tolist())]
    if outside:
        _log.warning("%s: %d regions have no voxel in the mask: %s", atlas, len(outside), name_some(outside))
    place = np.searchsorted(found, at_voxel)
    of_voxel = np.where(at_voxel > 0, place, -1).astype(np.int64)
    names = [table[i].name if i in table else f"region_{i}" for i in found.tolist()]
    groups = [table[i].group if i in table else "" for i in found.tolist()]
    return Regions(names, groups, of_voxel, mask)
