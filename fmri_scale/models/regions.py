"""Masks of atlas regions, or of groups of them: hidden as a whole, for the clip or for a span of frames.

Membership is by occupancy: a patch is hidden once the drawn regions fill at least half of its labelled voxels, so
small regions count with their neighbours and no single voxel decides. Regions are taken in a keyed random order, either
a number of whole regions, or until a number of tokens is hidden; then the last region gives the patches it fills most.
Shape suffixes: B clips, R regions, Q regions that may be drawn, M positions of a frame, T frames, S spans of frames,
U = S * Q units, N = M*T tokens.
"""

import math

import torch
from torch import Tensor

from fmri_scale.config import MaskConfig
from fmri_scale.errors import ConfigError
from fmri_scale.kernels.mask import unit_order
from fmri_scale.models.anatomy import Anatomy
from sharding.format import MIN_LABELLED


def maskable_positions(anatomy: Anatomy, patch_voxels: int, mask: MaskConfig) -> Tensor:
    """Return bool `[M]`: positions whose patch of `patch_voxels` can be hidden.

    It holds enough labelled voxels, half of which belong to regions that may be drawn; and, where the ratio is of
    the brain, some brain.
    """
    assert anatomy.regions is not None
    labelled_M = anatomy.regions.sum(0)
    maskable_M = labelled_M >= max(MIN_LABELLED * patch_voxels, 1)
    if anatomy.drawable is not None:
        maskable_M &= 2 * anatomy.regions[anatomy.drawable].sum(0) >= labelled_M
    return maskable_M & (anatomy.brain > 0) if mask.ratio_of == "brain" and anatomy.brain is not None else maskable_M


def region_mask(
    mask: MaskConfig,
    anatomy: Anatomy,
    patch_voxels: int,
    num_frames: int,
    seed: int,
    epochs_B: Tensor,
    clip_ids_B: Tensor,
) -> Tensor:
    """Hide atlas regions.

    Parameters
    ----------
    mask : `ratio` of the tokens that can be hidden, of brain tokens or of regions (`ratio_of`), for `tube_len` frames.
    anatomy : the regions; with `brain` where the ratio is of brain tokens.
    patch_voxels : voxels of a whole patch, of the same size as those that were counted.
    epochs_B, clip_ids_B : int64 `[B]`, with `seed` the key of each clip.

    Returns
    -------
    bool `[B, N]`; of tokens exactly the rounded number is True in every row, of regions exactly the patches of the
    rounded number of regions.

    Raises
    ------
    ConfigError : the atlas labels no patch, or the ratio hides none, all, or more than it labels.
    """
    maskable_M = maskable_positions(anatomy, patch_voxels, mask)
    assert anatomy.regions is not None
    places = torch.arange(len(anatomy.regions), device=maskable_M.device)
    drawable_Q = places if anatomy.drawable is None else places[anatomy.drawable]
    span = mask.tube_len or num_frames
    spans = math.ceil(num_frames / span)
    units = spans * len(drawable_Q)
    of_regions = mask.ratio_of == "regions"
    amount = _regions(mask, units) if of_regions else _tokens(mask, anatomy, maskable_M, num_frames)
    order_BSQ = unit_order(seed, epochs_B, clip_ids_B, units).view(-1, spans, len(drawable_Q))
    frame_span_T = torch.arange(num_frames, device=maskable_M.device) // span
    rows = []
    for order_SQ in order_BSQ:
        cost_SM = torch.stack([_cost(anatomy.regions, drawable_Q, order_Q) for order_Q in order_SQ])
        cost_MT = cost_SM[frame_span_T].T.masked_fill(~maskable_M.unsqueeze(1), torch.iinfo(torch.int64).max)
        rows.append(_below(cost_MT.flatten(), amount << 32) if of_regions else _cheapest(cost_MT.flatten(), amount))
    return torch.stack(rows)


def _regions(mask: MaskConfig, units: int) -> int:
    """Return how many units are hidden."""
    amount = round(mask.ratio * units)
    if not 0 < amount < units + bool(mask.groups):
        raise ConfigError(f"mask.ratio={mask.ratio} hides {amount} of {units} regions and spans; take another ratio")
    return amount


def _tokens(mask: MaskConfig, anatomy: Anatomy, maskable_M: Tensor, num_frames: int) -> int:
    """Return how many tokens are hidden."""
    total = int(maskable_M.sum()) * num_frames
    if mask.ratio_of == "units":
        amount = round(mask.ratio * total)
        if not 0 < amount < total + bool(mask.groups):
            raise ConfigError(f"mask.ratio={mask.ratio} hides {amount} of {total} tokens that the atlas labels")
        return amount
    assert anatomy.brain is not None
    brain = int((anatomy.brain > 0).sum()) * num_frames
    amount = round(mask.ratio * brain)
    if not 0 < amount <= total:
        raise ConfigError(
            f"mask.ratio={mask.ratio} of {brain} brain tokens is {amount}; the regions that may be drawn have {total}: "
            f"take a ratio up to {math.floor(100 * total / max(brain, 1)) / 100}"
        )
    return amount


def _below(cost_N: Tensor, limit: int) -> Tensor:
    """Return which tokens cost less than `limit`: those of the regions drawn first."""
    return cost_N < limit - (1 << 31)  # fullness is subtracted from a place, and is far smaller than half a step


def _cheapest(cost_N: Tensor, amount: int) -> Tensor:
    mask_N = torch.zeros_like(cost_N, dtype=torch.bool)
    mask_N[cost_N.sort(stable=True).indices[:amount]] = True
    return mask_N


def _cost(counts_RM: Tensor, drawable_Q: Tensor, order_Q: Tensor) -> Tensor:
    """Return int64 `[M]`: the place of the region at which a patch is hidden, fuller patches of it first."""
    by_place_Q = order_Q.argsort()
    filled_QM = counts_RM[drawable_Q[by_place_Q]].cumsum(0)
    first_M = (2 * filled_QM < counts_RM.sum(0)).sum(0).clamp(max=len(order_Q) - 1)
    deciding_M = by_place_Q[first_M]
    fullness_M = counts_RM[drawable_Q[deciding_M], torch.arange(counts_RM.shape[1], device=counts_RM.device)]
    return (order_Q[deciding_M] << 32) - fullness_M
