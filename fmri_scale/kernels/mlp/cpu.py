"""Norm, MLP and residual in plain torch on any device; the backward pass makes the hidden layer again, once."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fmri_scale.kernels.mlp.reference import forward

__all__ = ["backward", "forward"]


def backward(
    dy: Tensor, x, gain, shift, up, up_bias, down, down_bias, eps: float, residual: bool
) -> tuple[Tensor, ...]:
    """Return the gradients of x, gain, shift, up, its bias, down and its bias."""
    shape = [x.shape[-1]]
    u, mean, rstd = torch.native_layer_norm(x, shape, gain, shift, eps)
    hidden = F.linear(u, up, up_bias)
    d_down = _rows(dy).t() @ _rows(F.gelu(hidden))
    d_hidden = torch.ops.aten.gelu_backward(dy @ down, hidden)
    d_up = _rows(d_hidden).t() @ _rows(u)
    biases = (_rows(d_hidden).sum(0), _rows(dy).sum(0))
    every = [True, True, True]
    dx, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(
        d_hidden @ up, x, shape, mean, rstd, gain, shift, every
    )
    return dx + dy if residual else dx, d_gain, d_shift, d_up, biases[0], d_down, biases[1]


def _rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, -2)
