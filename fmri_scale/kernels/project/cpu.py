"""Norm and in-projection in plain torch on any device; the backward pass normalises again."""

import torch
from torch import Tensor

from fmri_scale.kernels.project.reference import forward

__all__ = ["backward", "forward"]


def backward(
    d_first: Tensor,
    d_second: Tensor,
    past: Tensor | None,
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    weight: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, gain, shift and weight."""
    shape = [x.shape[-1]]
    u, mean, rstd = torch.native_layer_norm(x, shape, gain, shift, eps)
    inner = weight.shape[0] // 2
    rows = u.flatten(0, -2)
    d_weight = torch.empty_like(weight)
    for half, d in enumerate((d_first, d_second)):
        torch.mm(d.flatten(0, -2).t(), rows, out=d_weight[half * inner : (half + 1) * inner])
    du = (d_first.flatten(0, -2) @ weight[:inner]).addmm_(d_second.flatten(0, -2), weight[inner:]).view_as(x)
    every = [True, True, True]
    dx, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(du, x, shape, mean, rstd, gain, shift, every)
    return dx if past is None else dx + past, d_gain, d_shift, d_weight
