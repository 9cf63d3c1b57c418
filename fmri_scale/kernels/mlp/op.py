"""Norm, MLP and residual as one operator, `fmri_scale::norm_mlp`; it saves its inputs and no hidden layer."""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fmri_scale.kernels.autodiff import contiguous
from fmri_scale.kernels.backends import implementation


@torch.library.custom_op("fmri_scale::norm_mlp", mutates_args=())
def norm_mlp_op(
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    eps: float,
    residual: bool,
    backend: str,
) -> Tensor:
    """Run the forward pass on the backend that fits the device."""
    weights = (gain, shift, up, up_bias, down, down_bias)
    return implementation("mlp", backend, x.device).forward(x, *weights, eps, residual).contiguous()


@torch.library.custom_op("fmri_scale::norm_mlp_backward", mutates_args=())
def norm_mlp_backward_op(
    dy: Tensor,
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    eps: float,
    residual: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gain, shift, up, its bias, down and its bias."""
    weights = (gain, shift, up, up_bias, down, down_bias)
    return contiguous(implementation("mlp", backend, x.device).backward(dy, x, *weights, eps, residual))


@norm_mlp_op.register_fake
def _(x, *rest):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@norm_mlp_backward_op.register_fake
def _(dy, *inputs):
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in inputs[:7])


def _save(ctx, inputs, output):
    *tensors, ctx.eps, ctx.residual, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy):
    grads = norm_mlp_backward_op(dy.contiguous(), *ctx.saved_tensors, ctx.eps, ctx.residual, ctx.backend)
    return *grads, None, None, None


norm_mlp_op.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.fmri_scale.norm_mlp)
def _(x, gain, shift, up, *rest, out_shape=None, **kwargs):
    """Operations of the products, for torch's counter, which cannot see into an operator."""
    return 4 * math.prod(x) * up[0]
