"""The atlas of a run's masks, from its file to the tensors that masks are drawn from.

In: `mask.atlas` (a folder made by `fmri-shards atlas`, or a label image with `mask.labels`), the patch of the model in
voxels of the canonical grid. Out: `MaskAtlas`, and from it an `Anatomy`, also of labels that an augmentation moved, and
the weights of voxels in the loss.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fmri_scale.config import LossConfig, MaskConfig
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
    names, group_names : of each region; a region without a group has "".
    """

    def __init__(self, mask: MaskConfig, patch: Sequence[int], device: torch.device) -> None:
        if is_atlas(mask.atlas):
            if mask.labels:
                raise ConfigError(f"mask.labels={mask.labels}: {mask.atlas} has its own names and groups; leave it out")
            atlas = load_atlas(mask.atlas)
            labels, table, self.vote = atlas.labels, atlas.regions, atlas.method == "vote"
        else:
            labels, self.vote = load_label_image_on_grid(mask.atlas), False
            table = load_labels_tsv(mask.labels) if mask.labels else []
        self.patch_voxels = math.prod(patch)
        counts = patch_occupancy(labels, patch)
        self.labels = torch.from_numpy(labels).to(device)
        self.indices = torch.from_numpy(region_labels(labels)).to(device)
        by_index = {label.index: label for label in table}
        regions = [by_index.get(index, Label(index, f"label_{index}")) for index in self.indices.tolist()]
        self.names, self.group_names = [region.name for region in regions], [region.group for region in regions]
        self.group, self.drawable = (part.to(device) for part in _groups(mask, self.group_names))
        self._counts = torch.from_numpy(voted(counts, self.patch_voxels) if self.vote else counts).to(device).long()

    def voxel_weights(self, loss: LossConfig, factors: Sequence[int]) -> Tensor:
        """Return the weight of each voxel of the model's image in the loss, float32 `[X, Y, Z]`.

        Parameters
        ----------
        loss : `equal_regions` divides a region's weight among its voxels, so that the sums over regions are equal and
            labelled voxels have 1 in the mean; `region_weights` multiplies, by region or else by group.
        factors : voxels of the grid along each axis that the image takes together; their weights are averaged.

        Raises
        ------
        ConfigError : the atlas has no region or group of a name.
        """
        known = set(self.names) | set(self.group_names)
        unknown = [name for name in loss.region_weights if name not in known]
        if unknown:
            raise ConfigError(f"loss.region_weights: the atlas has no region or group {unknown[0]!r}; give its table")
        weight_R = torch.ones(len(self.indices), dtype=torch.float64, device=self.labels.device)
        region_XYZ = torch.searchsorted(self.indices, self.labels).clamp_max(len(self.indices) - 1)
        labelled_XYZ = self.labels > 0
        if loss.equal_regions:
            size_R = torch.bincount(region_XYZ[labelled_XYZ], minlength=len(self.indices)).double()
            weight_R *= size_R.sum() / (len(size_R) * size_R)
        for row, (name, group) in enumerate(zip(self.names, self.group_names, strict=True)):
            weight_R[row] *= loss.region_weights.get(name, loss.region_weights.get(group, 1.0))
        weight_XYZ = torch.where(labelled_XYZ, weight_R[region_XYZ], 1.0).float()
        a, b, c = factors
        return functional.avg_pool3d(weight_XYZ[None], (a, b, c))[0]

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


def _groups(mask: MaskConfig, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the group number of each region, -1 for none, and which regions may be drawn.

    Raises
    ------
    ConfigError : a group was asked for that the atlas does not have, or groups of an atlas that has none.
    """
    found = list(dict.fromkeys(name for name in names if name))
    unknown = [group for group in mask.groups if group not in found]
    if unknown:
        raise ConfigError(f"mask.groups: {mask.atlas} has no group {unknown[0]!r}; it has {', '.join(found) or 'none'}")
    if not found and (mask.strategy == "group" or "group" in mask.mixture or "group" in mask.mixture_start):
        raise ConfigError(f"mask.strategy=group: {mask.atlas} has no groups; give a table that has, as mask.labels")
    group = torch.tensor([found.index(name) if name else -1 for name in names])
    drawable = torch.tensor([not mask.groups or name in mask.groups for name in names])
    return group, drawable
