"""Models of the patches that hold brain alone (model.brain_tokens): which these are, and lists to find them by.

In: the brain's voxels. Out: for each stage the patches that are computed, a coarse one where any patch under it is.
Tokens of such a model are `[B, M, 1, 1, T, E]`: its M patches stand in raster order in place of the grid, so that all
that works token by token, and every mean over tokens, stays what it is. Neighbours are found by index: in windows
(`kernels.windows.window_table`), in merging and in expanding. Shape suffixes: B clips, XYZ voxels, DHW positions along
x, y, z, M patches of a stage, K those of the next coarser one, T frames.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fmri_scale.config import ModelConfig
from fmri_scale.models.shapes import token_grid


def stage_patches(brain_XYZ: Tensor, config: ModelConfig) -> list[Tensor]:
    """Return which patches of each encoder stage hold brain, bool `[D, H, W]` on the CPU, from fine to coarse.

    Raises
    ------
    ValueError : the brain is not one of the configuration's volumes, or is empty.
    """
    if tuple(brain_XYZ.shape) != tuple(config.image_size):
        raise ValueError(f"brain of shape {tuple(brain_XYZ.shape)}: expected the voxels {tuple(config.image_size)}")
    cut = [n for pair in zip(token_grid(config), config.patch_size, strict=False) for n in pair]
    found = [(brain_XYZ.cpu() > 0).reshape(cut).amax((1, 3, 5))]
    if not found[0].any():
        raise ValueError("the brain is empty: model.brain_tokens has no patch to compute")
    for _ in config.depths[1:]:
        found.append(_eight(found[-1]).any(-1))
    return found


def children(fine_DHW: Tensor, coarse_DHW: Tensor) -> Tensor:
    """Return the number of each of a patch's eight children (x slowest), int64 `[K * 8]`; M where it is none."""
    count = int(fine_DHW.sum())
    number = torch.where(fine_DHW, fine_DHW.flatten().cumsum(0).view(fine_DHW.shape) - 1, count)
    return _eight(number)[coarse_DHW].flatten()


def octants(fine_DHW: Tensor, coarse_DHW: Tensor) -> Tensor:
    """Return where each patch stands among the eight children of all coarse patches, int64 `[M]`."""
    found = children(fine_DHW, coarse_DHW)
    place_M = torch.empty(int(fine_DHW.sum()), dtype=torch.int64)
    real = (found < len(place_M)).nonzero().squeeze(1)
    return place_M.index_copy_(0, found[real], real)


def places(active_DHW: Tensor) -> Tensor:
    """Return the positions of the patches in raster order, int64 `[M]`."""
    return active_DHW.flatten().nonzero().squeeze(1)


def take(values: Tensor, places_M: Tensor | None, axis: int) -> Tensor:
    """Return the patches of values whose axes from `axis` are D, H, W as M, 1, 1; all, as they are, without places."""
    if places_M is None:
        return values
    return values.flatten(axis, axis + 2).index_select(axis, places_M).unflatten(axis, (-1, 1, 1))


def spread(values_BNE: Tensor, places_M: Tensor, positions: int) -> Tensor:
    """Return tokens `[B, M * T, E]` at their places among those of all positions, `[B, positions * T, E]`, else 0."""
    values = values_BNE.unflatten(1, (len(places_M), -1))
    whole = values.new_zeros(len(values), positions, *values.shape[2:])
    return whole.index_copy(1, places_M, values).flatten(1, 2)


def merge_children(x_BMTC: Tensor, children_K8: Tensor) -> Tensor:
    """Join the eight children of each coarse patch, `[B, M, 1, 1, T, C]` to `[B, K, 1, 1, T, 8C]`; missing are 0."""
    padded = F.pad(x_BMTC.flatten(1, 3), (0, 0, 0, 0, 0, 1))
    found = padded.index_select(1, children_K8).unflatten(1, (-1, 8))
    return found.transpose(2, 3).flatten(3).unflatten(1, (-1, 1, 1))


def pick_children(x_BK8: Tensor, octants_M: Tensor) -> Tensor:
    """Keep the children that are computed, `[B, K, 1, 1, T, 2, 2, 2, C]` to `[B, M, 1, 1, T, C]`."""
    by_child = x_BK8.flatten(5, 7).flatten(1, 3).transpose(2, 3).flatten(1, 2)
    return by_child.index_select(1, octants_M).unflatten(1, (-1, 1, 1))


def return_children(x_BM: Tensor, octants_M: Tensor, coarse: int) -> Tensor:
    """Undo `pick_children`: `[B, M, 1, 1, T, C]` to `[B, K, 1, 1, T, 2, 2, 2, C]`, 0 where there is no child."""
    values = x_BM.flatten(1, 3)
    whole = values.new_zeros(len(values), 8 * coarse, *values.shape[2:]).index_copy_(1, octants_M, values)
    return whole.unflatten(1, (coarse, 8)).transpose(2, 3).unflatten(3, (2, 2, 2)).unflatten(1, (coarse, 1, 1))


def _eight(values_DHW: Tensor) -> Tensor:
    """The eight values of each 2x2x2 cube, x slowest: `[D/2, H/2, W/2, 8]`."""
    d, h, w = (n // 2 for n in values_DHW.shape)
    return values_DHW.view(d, 2, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).flatten(3)
