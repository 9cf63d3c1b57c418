"""Norm, MLP and residual by definition."""

import functools

from torch import Tensor
from torch.nn import functional as F

from fmri_scale.kernels.autodiff import gradients


def forward(x, gain, shift, up, up_bias, down, down_bias, eps: float, residual: bool) -> Tensor:
    """Arguments as `fmri_scale.kernels.mlp.norm_mlp`."""
    u = F.layer_norm(x, x.shape[-1:], gain, shift, eps)
    y = F.linear(F.gelu(F.linear(u, up, up_bias)), down, down_bias)
    return x + y if residual else y


def backward(
    dy: Tensor, x, gain, shift, up, up_bias, down, down_bias, eps: float, residual: bool
) -> tuple[Tensor, ...]:
    """Gradients of the seven tensors by autograd."""
    tensors = (x, gain, shift, up, up_bias, down, down_bias)
    return gradients(functools.partial(forward, eps=eps, residual=residual), tensors, dy)
