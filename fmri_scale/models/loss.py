"""The loss of the masked autoencoder: squared error on the hidden patches, every clip counting alike.

Only patches that count are predicted: hidden ones and, given weights, those that hold a value of weight above 0.
Shape suffixes: B clips, N = M*T tokens in natural order (frames fastest), M positions, T frames, P values of a patch,
K patches that count, E width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmri_scale.config import LossConfig

PLAIN = LossConfig()
NORM_EPS = 1e-6
"Added to the variance of a normalised patch (He et al. 2022, Masked autoencoders)."


def masked_loss(
    head: Callable[[Tensor], Tensor],
    features_BNE: Tensor,
    patches_BNP: Tensor,
    hidden_BN: Tensor,
    weight_MP: Tensor | None,
    options: LossConfig = PLAIN,
) -> Tensor:
    """Return the mean over clips of each clip's weighted mean squared error on the values that count.

    Since every clip counts alike, a batch may be split over micro-batches and ranks without changing the gradient.
    (The published code pools a batch; that differs only where clips hide unequal numbers of values.)

    Parameters
    ----------
    head : maps features `[K, E]` to predicted values `[K, P]`.
    features_BNE : the decoder's output.
    patches_BNP : true values of every patch; compared in float32 or, if given, float64.
    hidden_BN : bool, the patches that are scored.
    weight_MP : weight of each value of a position's patch, 0 for those that do not count; None: 1 for all.
    options : `patch_norm` and `temporal_weight`; regions are in the weights already.

    Returns
    -------
    scalar; a clip of which nothing counts adds 0.
    """
    clips, tokens = hidden_BN.shape
    total_M = hidden_BN.new_full((1,), patches_BNP.shape[-1], dtype=torch.float64)
    if weight_MP is not None:
        total_M = weight_MP.sum(-1, dtype=torch.float64)
    total_BN = (hidden_BN.view(clips, len(total_M), -1) * total_M.unsqueeze(1)).view(clips, tokens)
    counts_K = total_BN.flatten().nonzero().squeeze(1)
    position_K = counts_K % tokens // (tokens // len(total_M))
    weight_KP = None if weight_MP is None else weight_MP.index_select(0, position_K)
    target_KP = patches_BNP.flatten(0, 1).index_select(0, counts_K)
    if options.patch_norm:
        mean_K1, sd_K1 = patch_moments(target_KP, weight_KP)
        target_KP = (target_KP - mean_K1) / sd_K1
    prediction_KP = head(features_BNE.flatten(0, 1).index_select(0, counts_K))
    share_BN = _share(total_BN.sum(1)).unsqueeze(1).expand(clips, tokens)
    if not options.temporal_weight:
        share_K = share_BN.flatten().index_select(0, counts_K)
        return _WeightedSquares.apply(prediction_KP, target_KP, share_K, weight_KP)
    exact = torch.promote_types(prediction_KP.dtype, torch.float32)
    error_KP = prediction_KP.to(exact) - target_KP.to(exact)
    if weight_KP is not None:
        error_KP = error_KP * weight_KP.to(exact).sqrt()
    frames = tokens // (len(total_M) if weight_MP is not None else 1)
    return _with_changes(error_KP, total_BN, counts_K, frames, options.temporal_weight)


def patch_moments(patches: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and deviation `[..., 1]` of each patch `[..., P]`, over its values of weight above 0."""
    count = torch.ones_like(patches) if weight is None else (weight > 0).to(patches.dtype).expand_as(patches)
    number = count.sum(-1, keepdim=True).clamp(min=1)
    mean = (patches * count).sum(-1, keepdim=True) / number
    variance = ((patches - mean).square() * count).sum(-1, keepdim=True) / number
    return mean, (variance + NORM_EPS).sqrt()


def _share(total_B: Tensor) -> Tensor:
    """Return what a clip's sum is multiplied with, so that clips count alike and those without weight not at all."""
    return torch.where(total_B > 0, 1.0 / (len(total_B) * total_B.clamp(min=torch.finfo(torch.float64).tiny)), 0.0)


def _with_changes(error_KP: Tensor, total_BN: Tensor, counts_K: Tensor, frames: int, amount: float) -> Tensor:
    """Return (1 - amount) times the mean squared error plus `amount` times that of its change between frames.

    The error of a visible patch is 0. Of every pair of consecutive frames of a position of which at least one is
    hidden, the squared difference of errors counts; divided by the number of hidden ends, so that errors without
    correlation in time give what the plain loss gives, and constant ones only where hiding starts or ends.
    """
    clips, tokens = total_BN.shape
    frame_K = counts_K % tokens % frames
    ends_K = (frame_K > 0).double() + (frame_K < frames - 1).double()
    square_K = error_KP.square().sum(-1)
    place_N = torch.full((clips * tokens + 1,), -1, dtype=torch.int64, device=counts_K.device)
    place_N[counts_K] = torch.arange(len(counts_K), device=counts_K.device)
    before_K = torch.where(frame_K > 0, place_N[(counts_K - 1).clamp(min=0)], -1)
    both = (before_K >= 0).nonzero().squeeze(1)
    product_K = (error_KP[both] * error_KP[before_K[both]]).sum(-1)
    clip_K = counts_K // tokens
    ends_B = torch.zeros(clips, dtype=torch.float64, device=counts_K.device)
    ends_B.index_add_(0, clip_K, ends_K * total_BN.flatten()[counts_K])
    plain_K, change_K = (share_B[clip_K].to(square_K.dtype) for share_B in (_share(total_BN.sum(1)), _share(ends_B)))
    changes = (square_K * ends_K.to(square_K.dtype) * change_K).sum() - 2 * (product_K * change_K[both]).sum()
    return (1 - amount) * (square_K * plain_K).sum() + amount * changes


class _WeightedSquares(torch.autograd.Function):
    """Sum of weighted squared differences; keeps the difference alone, where autograd would keep it thrice."""

    @staticmethod
    def forward(
        ctx: Any, prediction_KP: Tensor, target_KP: Tensor, share_K: Tensor, weight_KP: Tensor | None
    ) -> Tensor:
        exact = torch.promote_types(prediction_KP.dtype, torch.float32)
        difference_KP = torch.sub(prediction_KP.to(exact), target_KP.to(exact))
        root_KP = None if weight_KP is None else weight_KP.to(exact).sqrt()
        if root_KP is not None:
            difference_KP.mul_(root_KP)
        loss = (torch.linalg.vector_norm(difference_KP, dim=-1).square() * share_K.to(exact)).sum()
        if root_KP is not None:
            difference_KP.mul_(root_KP)
        ctx.save_for_backward(difference_KP, share_K)
        ctx.dtype = prediction_KP.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weighted_KP, share_K = ctx.saved_tensors
        scale_K1 = (2.0 * gradient * share_K).to(weighted_KP.dtype).unsqueeze(1)
        return (weighted_KP * scale_K1).to(ctx.dtype), None, None, None
