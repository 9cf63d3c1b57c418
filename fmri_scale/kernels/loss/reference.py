"""The loss by definition: predict every patch, square the differences that count, average by clip, then over clips."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmri_scale.kernels.clips import CodedClips, Hidden, hidden_tokens, patch_places, patch_values, pick, pick_tokens


def loss(
    clips: CodedClips,
    features_BNC: Tensor,
    weight_PC: Tensor,
    bias_P: Tensor,
    hidden: Hidden,
    brain_only: bool,
    patches_K: Tensor | None = None,
) -> Tensor:
    """Shapes and meaning as `fmri_scale.kernels.loss.masked_loss`."""
    batch, exact = features_BNC.shape[0], torch.promote_types(features_BNC.dtype, torch.float32)
    places_MP = pick(patch_places(clips), patches_K, 0)
    target_BTMP = torch.stack([patch_values(clips, b, places_MP, exact) for b in range(batch)])
    target_BNP = target_BTMP.transpose(1, 2).flatten(1, 2)
    hidden_BN = pick_tokens(hidden_tokens(hidden, batch, clips.grid, features_BNC.device), patches_K, clips.grid[3])
    counted_MP = places_MP >= 0 if brain_only else torch.ones_like(places_MP, dtype=torch.bool)
    counted_BNP = counted_MP.repeat_interleave(clips.grid[3], 0) & hidden_BN[..., None]
    difference_BNP = F.linear(features_BNC, weight_PC, bias_P).to(exact) - target_BNP
    squares_B = difference_BNP.square().where(counted_BNP, 0.0).sum((1, 2))
    return (squares_B / counted_BNP.sum((1, 2)).clamp(min=1)).mean()


def forward(
    clips: CodedClips,
    features_BNC: Tensor,
    weight_PC: Tensor,
    bias_P: Tensor,
    hidden: Hidden,
    brain_only: bool,
    with_gradients: bool,
    patches_K: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Loss, and its gradients to features, weight and bias by autograd."""
    leaves = [v.detach().requires_grad_(with_gradients) for v in (features_BNC, weight_PC, bias_P)]
    with torch.set_grad_enabled(with_gradients):
        value = loss(clips, leaves[0], leaves[1], leaves[2], hidden, brain_only, patches_K)
    if not with_gradients:
        return value, *(v.new_empty(0) for v in leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)
