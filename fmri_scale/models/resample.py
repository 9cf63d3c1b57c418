"""Between stages: eight neighbours become one token on the way down, one becomes eight on the way up.

Time is never merged. Both keep their (joined) input alone for the backward pass, as the blocks do (lean.py). Where
patches are listed (brain.py) missing children are zeros on the way down, and are not kept on the way up.
Shape suffixes: B clips, DHW tokens along x, y, z, T frames, C width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fmri_scale.models.brain import merge_children, pick_children, return_children
from fmri_scale.models.lean import Gradient, cast_like, norm_gradients, norm_linear, recomputes, weight_gradient


class PatchMerge(nn.Module):
    """Join 2x2x2 neighbours channel-wise (x slowest), normalise, reduce to `multiplier * width` channels."""

    child_list: Tensor | None

    def __init__(self, width: int, multiplier: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduce = nn.Linear(8 * width, multiplier * width, bias=False)
        self.register_buffer("child_list", None, persistent=False)

    def forward(self, x_BDHWTC: Tensor) -> Tensor:
        """Return `[B, D/2, H/2, W/2, T, multiplier * C]`; D, H and W are even."""
        if self.child_list is not None:
            return norm_linear(merge_children(x_BDHWTC, self.child_list), self.norm, self.reduce)
        b, d, h, w, t, c = x_BDHWTC.shape
        pairs = x_BDHWTC.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, t, c)
        joined = pairs.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).reshape(b, d // 2, h // 2, w // 2, t, 8 * c)
        return norm_linear(joined, self.norm, self.reduce)


class PatchExpand(nn.Module):
    """Spread a token over 2x2x2 new ones of `width / multiplier` channels, then normalise each."""

    octants: Tensor | None

    def __init__(self, width: int, multiplier: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width // multiplier, bias=False)
        self.norm = nn.LayerNorm(width // multiplier)
        self.register_buffer("octants", None, persistent=False)

    def forward(self, x_BDHWTC: Tensor) -> Tensor:
        """Return `[B, 2D, 2H, 2W, T, C / multiplier]`."""
        weights = cast_like(x_BDHWTC, self.proj.weight, self.norm.weight, self.norm.bias)
        if recomputes():
            return _Expand.apply(x_BDHWTC, *weights, self.octants, self.norm.eps)
        return _expand(x_BDHWTC, weights, self.octants, self.norm.eps)


class _Expand(torch.autograd.Function):
    """`PatchExpand`; the projected tokens are made again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, gain: Tensor, shift: Tensor, octants: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, gain, shift, octants)
        ctx.eps = eps
        return _expand(x, (weight, gain, shift), octants, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Gradient, ...]:
        x, weight, gain, shift, octants = ctx.saved_tensors
        spread = _project(x, weight, gain)
        _, mean, rstd = torch.native_layer_norm(spread, gain.shape, gain, shift, ctx.eps)
        b, d, h, w, t, _ = x.shape
        if octants is None:
            cut = dy.reshape(b, d, 2, h, 2, w, 2, t, -1).permute(0, 1, 3, 5, 7, 2, 4, 6, 8).contiguous()
        else:
            cut = return_children(dy, octants, d).contiguous()
        d_spread, d_gain, d_shift = norm_gradients(cut, spread, mean, rstd, gain, shift)
        d_spread = d_spread.view(*x.shape[:-1], -1)
        return d_spread @ weight, weight_gradient(ctx.needs_input_grad[1], d_spread, x), d_gain, d_shift, None, None


def _expand(x: Tensor, weights: Sequence[Tensor], octants: Tensor | None, eps: float) -> Tensor:
    weight, gain, shift = weights
    b, d, h, w, t, _ = x.shape
    spread = F.layer_norm(_project(x, weight, gain), gain.shape, gain, shift, eps)
    if octants is not None:
        return pick_children(spread, octants)
    return spread.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(b, 2 * d, 2 * h, 2 * w, t, -1)


def _project(x: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
    return F.linear(x, weight).view(*x.shape[:-1], 2, 2, 2, gain.shape[0])
