"""The scan as one operator, `fmri_scale::scan`: torch.compile, checkpointing and ZeRO see a single opaque node.

It saves its inputs and nothing else; `fmri_scale::scan_backward` recomputes the states.
"""

from typing import Sequence  # noqa: UP035 - torch before 2.7 reads operators' types from typing alone

import torch
from torch import Tensor

from fmri_scale.kernels.autodiff import contiguous
from fmri_scale.kernels.backends import implementation
from fmri_scale.kernels.windows import windows_of


@torch.library.custom_op("fmri_scale::scan", mutates_args=())
def scan_op(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    h0: Tensor | None,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reverse: bool,
    backend: str,
    table: Tensor | None = None,
) -> Tensor:
    """Run the forward pass on the backend that fits the device."""
    windows = windows_of(grid, window, shift, table)
    return implementation("scan", backend, x.device).forward(x, dt, A, B, C, D, windows, h0, reverse)


@torch.library.custom_op("fmri_scale::scan_backward", mutates_args=())
def scan_backward_op(
    dy: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    h0: Tensor | None,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reverse: bool,
    backend: str,
    table: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, h0; the last has A's shape and is meaningless where h0 is None."""
    windows = windows_of(grid, window, shift, table)
    return contiguous(implementation("scan", backend, x.device).backward(dy, x, dt, A, B, C, D, windows, h0, reverse))


@scan_op.register_fake
def _(x, dt, A, B, C, D, h0, grid, window, shift, reverse, backend, table=None):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@scan_backward_op.register_fake
def _(dy, x, dt, A, B, C, D, h0, grid, window, shift, reverse, backend, table=None):
    like = (x, dt, A, B, C, D, A if h0 is None else h0)
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in like)


def _save(ctx, inputs, output):
    *tensors, ctx.grid, ctx.window, ctx.shift, ctx.reverse, ctx.backend, table = inputs
    ctx.save_for_backward(*tensors, table)


def _differentiate(ctx, dy):
    *tensors, table = ctx.saved_tensors
    options = (ctx.grid, ctx.window, ctx.shift, ctx.reverse, ctx.backend, table)
    *grads, dh0 = scan_backward_op(dy.contiguous(), *tensors, *options)
    return *grads, None if tensors[-1] is None else dh0, *[None] * len(options)


scan_op.register_autograd(_differentiate, setup_context=_save)
