"""The convolution as one operator, `fmri_scale::conv_silu`; it saves its inputs and recomputes the pre-activation."""

from typing import Sequence  # noqa: UP035 - torch before 2.7 reads operators' types from typing alone

import torch
from torch import Tensor

from fmri_scale.kernels.autodiff import contiguous
from fmri_scale.kernels.backends import implementation
from fmri_scale.kernels.windows import windows_of


@torch.library.custom_op("fmri_scale::conv_silu", mutates_args=())
def conv_silu_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    prefix: Tensor | None,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    backend: str,
    table: Tensor | None = None,
) -> Tensor:
    """Run the forward pass on the backend that fits the device."""
    windows = windows_of(grid, window, shift, table)
    return implementation("conv", backend, x.device).forward(x, weight, bias, windows, prefix)


@torch.library.custom_op("fmri_scale::conv_silu_backward", mutates_args=())
def conv_silu_backward_op(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    prefix: Tensor | None,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    backend: str,
    table: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and prefix (K - 1, E); the last is meaningless where prefix is None."""
    windows = windows_of(grid, window, shift, table)
    return contiguous(implementation("conv", backend, x.device).backward(dy, x, weight, bias, windows, prefix))


@conv_silu_op.register_fake
def _(x, weight, bias, prefix, grid, window, shift, backend, table=None):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@conv_silu_backward_op.register_fake
def _(dy, x, weight, bias, prefix, grid, window, shift, backend, table=None):
    before = x.new_empty(weight.shape[1] - 1, x.shape[2]) if prefix is None else prefix
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, weight, bias, before))


def _save(ctx, inputs, output):
    *tensors, ctx.grid, ctx.window, ctx.shift, ctx.backend, table = inputs
    ctx.save_for_backward(*tensors, table)


def _differentiate(ctx, dy):
    *tensors, table = ctx.saved_tensors
    options = (ctx.grid, ctx.window, ctx.shift, ctx.backend, table)
    *grads, d_prefix = conv_silu_backward_op(dy.contiguous(), *tensors, *options)
    return *grads, None if tensors[-1] is None else d_prefix, *[None] * len(options)


conv_silu_op.register_autograd(_differentiate, setup_context=_save)
