"""The loss of the masked autoencoder: squared error on the hidden patches, every clip counting alike.

Only patches that count are predicted: hidden ones and, given a brain, those that hold any of it. Shape suffixes:
B clips, N = M*T tokens in natural order, M positions, T frames, P values of a patch, K patches that count, E width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def masked_loss(
    head: Callable[[Tensor], Tensor],
    features_BNE: Tensor,
    patches_BNP: Tensor,
    hidden_BN: Tensor,
    brain_MP: Tensor | None,
) -> Tensor:
    """Return the mean over clips of each clip's mean squared error on the values that count.

    Since every clip counts alike, a batch may be split over micro-batches and ranks without changing the gradient.
    (The published code pools a batch; that differs only where clips hide unequal numbers of values.)

    Parameters
    ----------
    head : maps features `[K, E]` to predicted values `[K, P]`.
    features_BNE : the decoder's output.
    patches_BNP : true values of every patch; compared in float32 or, if given, float64.
    hidden_BN : bool, the patches that are scored.
    brain_MP : 1 for the values of a position's patch that count, else 0; None counts all.

    Returns
    -------
    scalar; a clip of which nothing counts adds 0.
    """
    clips, tokens = hidden_BN.shape
    values_M = hidden_BN.new_full((1,), patches_BNP.shape[-1], dtype=torch.int64)
    if brain_MP is not None:
        values_M = brain_MP.sum(-1).long()
    values_BN = (hidden_BN.view(clips, len(values_M), -1) * values_M.unsqueeze(1)).view(clips, tokens)
    weight_B = 1.0 / (clips * values_BN.sum(1).clamp(min=1)).double()
    weight_BN = weight_B.unsqueeze(1).expand(clips, tokens)
    counts_K = values_BN.flatten().nonzero().squeeze(1)
    position_K = counts_K % tokens // (tokens // len(values_M))
    return _WeightedSquares.apply(
        head(features_BNE.flatten(0, 1).index_select(0, counts_K)),
        patches_BNP.flatten(0, 1).index_select(0, counts_K),
        weight_BN.flatten().index_select(0, counts_K),
        None if brain_MP is None else brain_MP.index_select(0, position_K),
    )


class _WeightedSquares(torch.autograd.Function):
    """Sum of weighted squared differences; keeps the difference alone, where autograd would keep it thrice."""

    @staticmethod
    def forward(
        ctx: Any, prediction_KP: Tensor, target_KP: Tensor, weight_K: Tensor, counts_KP: Tensor | None
    ) -> Tensor:
        exact = torch.promote_types(prediction_KP.dtype, torch.float32)
        difference_KP = torch.sub(prediction_KP.to(exact), target_KP.to(exact))
        if counts_KP is not None:
            difference_KP.mul_(counts_KP)
        ctx.save_for_backward(difference_KP, weight_K)
        ctx.dtype = prediction_KP.dtype
        return (torch.linalg.vector_norm(difference_KP, dim=-1).square() * weight_K.to(exact)).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        difference_KP, weight_K = ctx.saved_tensors
        scale_K1 = (2.0 * gradient * weight_K).to(difference_KP.dtype).unsqueeze(1)
        return (difference_KP * scale_K1).to(ctx.dtype), None, None, None
