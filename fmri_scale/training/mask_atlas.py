"""The atlas of a run's masks, from its file to the tensors that masks are drawn from.

In: `mask.atlas` (a folder made by `fmri-shards atlas`, or a label image with `mask.labels`), the patch of the model in
voxels of the canonical grid. Out: `MaskAtlas`, and from it an `Anatomy`, also of labels that an augmentation moved.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fmri_scale.config import MaskConfig
from fmri_scale.errors import ConfigError
from fmri_scale.models import Anatomy
from sharding.atlas import Label, load_label_image_on_grid, load_labels_tsv, patch_occupancy, region_labels, voted
from sharding.atlas.store import is_atlas, load_atlas


class MaskAtlas:
    """Regions of the canonical grid and the groups they belong to.

    Attributes
    ----------
    labels : int32 `[X, Y, Z]` of the canonical grid.
    indices : int32 `[R]`, the labels of regions, ascending.
    """

    def __init__(self, mask: MaskConfig, patch: Sequence[int], device: torch.device) -> None:
        if is_atlas(mask.atlas):
            atlas = load_atlas(mask.atlas)
            labels, table, self.vote = atlas.labels, atlas.regions, atlas.method == "vote"
        else:
            labels, self.vote = load_label_image_on_grid(mask.atlas), False
            table = load_labels_tsv(mask.labels) if mask.labels else []
        self.patch_voxels = math.prod(patch)
        counts = patch_occupancy(labels, patch)
        self.labels = torch.from_numpy(labels).to(device)
        self.indices = torch.from_numpy(region_labels(labels)).to(device)
        self.group, self.drawable = (part.to(device) for part in _groups(mask, table, self.indices.tolist()))
        self._counts = torch.from_numpy(voted(counts, self.patch_voxels) if self.vote else counts).to(device).long()

    def anatomy(self, brain_M: Tensor, counts_RM: Tensor | None = None) -> Anatomy:
        """Return what masks are drawn from.

        Parameters
        ----------
        brain_M : brain voxels of each position's patch.
        counts_RM : voxels of each region where labels were moved; None: where they lie in the atlas.
        """
        if counts_RM is None:
            counts_RM = self._counts
        elif self.vote:
            counts_RM = _voted(counts_RM, self.patch_voxels)
        return Anatomy(counts_RM, self.drawable, self.group, brain_M)


def _voted(counts_RM: Tensor, patch_voxels: int) -> Tensor:
    """Give each patch to the region that has most of it, of equals the first; as `sharding.atlas.voted`."""
    rows = torch.arange(len(counts_RM), device=counts_RM.device).unsqueeze(1)
    winner_M = (counts_RM * len(counts_RM) - rows).argmax(0)
    return torch.where((rows == winner_M) & (counts_RM > 0), patch_voxels, 0)


def _groups(mask: MaskConfig, table: Sequence[Label], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the group number of each region, -1 for none, and which regions may be drawn.

    Raises
    ------
    ConfigError : a group was asked for that the atlas does not have, or groups of an atlas that has none.
    """
    by_index = {label.index: label.group for label in table}
    names = [by_index.get(index, "") for index in indices]
    found = list(dict.fromkeys(name for name in names if name))
    unknown = [group for group in mask.groups if group not in found]
    if unknown:
        raise ConfigError(f"mask.groups: {mask.atlas} has no group {unknown[0]!r}; it has {', '.join(found) or 'none'}")
    if not found and (mask.strategy == "group" or "group" in mask.mixture or "group" in mask.mixture_start):
        raise ConfigError(f"mask.strategy=group: {mask.atlas} has no groups; give a table that has, as mask.labels")
    group = torch.tensor([found.index(name) if name else -1 for name in names])
    drawable = torch.tensor([not mask.groups or name in mask.groups for name in names])
    return group, drawable
