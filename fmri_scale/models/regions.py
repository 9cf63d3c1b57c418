"""Masks of atlas regions: whole regions are hidden, for the clip or for a span of frames.

Membership is by occupancy: a patch is hidden once the chosen regions fill at least half of its labelled voxels, so
small regions count with their neighbours and no single voxel decides. Regions are taken in a keyed random order
until exactly `round(ratio * maskable tokens)` tokens are hidden; the last region gives the patches it fills most.
Shape suffixes: B clips, R regions, M positions of a frame, T frames, U = R * spans, N = M*T tokens.
"""

import math

import torch
from torch import Tensor

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.mask import permute

MIN_LABELLED = 0.25
"A patch can be hidden where at least this share of its voxels carries a label."


def maskable_positions(counts_RM: Tensor, patch_voxels: int) -> Tensor:
    """Return bool `[M]`: positions whose patch of `patch_voxels` holds enough labelled voxels to be hidden."""
    return counts_RM.sum(0) >= MIN_LABELLED * patch_voxels


def region_mask(
    counts_RM: Tensor,
    patch_voxels: int,
    num_frames: int,
    ratio: float,
    span: int,
    seed: int,
    epochs_B: Tensor,
    clip_ids_B: Tensor,
) -> Tensor:
    """Hide atlas regions.

    Parameters
    ----------
    counts_RM : int64, voxels of each region in the patch at each position.
    patch_voxels : voxels of a whole patch, of the same size as those that were counted.
    ratio : fraction of the maskable tokens to hide.
    span : frames for which a region is hidden; 0 is the whole clip.
    epochs_B, clip_ids_B : int64 `[B]`, with `seed` the key of each clip.

    Returns
    -------
    bool `[B, N]` with exactly `round(ratio * maskable tokens)` True in every row.

    Raises
    ------
    ConfigError : the atlas labels no patch, or the ratio hides none or all of its tokens.
    """
    maskable_M = maskable_positions(counts_RM, patch_voxels)
    total = int(maskable_M.sum()) * num_frames
    hidden = round(ratio * total)
    if not 0 < hidden < total:
        raise ConfigError(f"mask.ratio={ratio} hides {hidden} of {total} tokens that the atlas labels")
    rows = [
        _one_clip(counts_RM, maskable_M, num_frames, hidden, span or num_frames, (seed, int(epoch), int(clip)))
        for epoch, clip in zip(epochs_B.tolist(), clip_ids_B.tolist(), strict=True)
    ]
    return torch.stack(rows)


def _one_clip(
    counts_RM: Tensor, maskable_M: Tensor, num_frames: int, hidden: int, span: int, key: tuple[int, int, int]
) -> Tensor:
    regions = len(counts_RM)
    spans = math.ceil(num_frames / span)
    place_SR = _order(key, regions * spans, counts_RM.device).view(spans, regions)
    costs_SM = torch.stack([_cost(counts_RM, place_R) for place_R in place_SR])
    frame_span_T = torch.arange(num_frames, device=counts_RM.device) // span
    cost_MT = costs_SM[frame_span_T].T.masked_fill(~maskable_M.unsqueeze(1), torch.iinfo(torch.int64).max)
    cheapest = cost_MT.flatten().sort(stable=True).indices[:hidden]
    mask_N = torch.zeros(cost_MT.numel(), dtype=torch.bool, device=counts_RM.device)
    mask_N[cheapest] = True
    return mask_N


def _order(key: tuple[int, int, int], units: int, device: torch.device) -> Tensor:
    """Return the place of each unit in the clip's random order, int64 `[U]`."""
    seed, epoch, clip = key
    return permute(seed, epoch, clip, units, torch.arange(units, device=device))


def _cost(counts_RM: Tensor, place_R: Tensor) -> Tensor:
    """Return int64 `[M]`: the place of the region at which a patch is hidden, fuller patches of it first."""
    order_R = place_R.argsort()
    filled_RM = counts_RM[order_R].cumsum(0)
    first_M = (2 * filled_RM < filled_RM[-1]).sum(0).clamp(max=len(order_R) - 1)
    deciding_R = order_R[first_M]
    fullness_M = counts_RM[deciding_R, torch.arange(counts_RM.shape[1], device=counts_RM.device)]
    return (place_R[deciding_R] << 32) - fullness_M
