"""Selection as one operator, `fmri_scale::select`, one for the step sizes alone, and one for the gradients."""

import torch
from torch import Tensor

from fmri_scale.kernels.autodiff import contiguous
from fmri_scale.kernels.backends import implementation


@torch.library.custom_op("fmri_scale::select", mutates_args=())
def select_op(mixed: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Run the forward pass on the backend that fits the device: dt and the selection."""
    return contiguous(implementation("select", backend, mixed.device).forward(mixed, x_proj, dt_proj, dt_bias))


@torch.library.custom_op("fmri_scale::select_steps", mutates_args=())
def select_steps_op(selection: Tensor, dt_proj: Tensor, dt_bias: Tensor, backend: str) -> Tensor:
    """dt of a selection that was made before; for backward passes, so it has no gradient."""
    return implementation("select", backend, selection.device).steps(selection, dt_proj, dt_bias).contiguous()


@torch.library.custom_op("fmri_scale::select_backward", mutates_args=())
def select_backward_op(
    d_mixed: Tensor,
    d_dt: Tensor,
    past: Tensor | None,
    dB: Tensor,
    dC: Tensor,
    mixed: Tensor,
    selection: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of mixed, to which `d_mixed` is added, and those of x_proj, dt_proj and its bias.

    `past` is what dt before its projection got besides, `[..., R]`.
    """
    inputs = (d_mixed, d_dt, past, dB, dC, mixed, selection, x_proj, dt_proj, dt_bias)
    return contiguous(implementation("select", backend, mixed.device).backward(*inputs))


@select_op.register_fake
def _(mixed, x_proj, dt_proj, dt_bias, backend):
    return mixed.new_empty(mixed.shape), mixed.new_empty(*mixed.shape[:-1], x_proj.shape[0])


@select_steps_op.register_fake
def _(selection, dt_proj, dt_bias, backend):
    return selection.new_empty(*selection.shape[:-1], dt_proj.shape[0])


@select_backward_op.register_fake
def _(d_mixed, d_dt, past, dB, dC, mixed, selection, x_proj, dt_proj, dt_bias, backend):
    return tuple(v.new_empty(v.shape) for v in (mixed, x_proj, dt_proj, dt_bias))


def _save(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[1])


def _differentiate(ctx, d_dt, d_selection):
    mixed, x_proj, dt_proj, dt_bias, selection = ctx.saved_tensors
    rank = dt_proj.shape[1]
    past, maps = d_selection[..., :rank].contiguous(), d_selection[..., rank:]
    dB, dC = (v.contiguous() for v in maps.chunk(2, -1))
    weights = (x_proj, dt_proj, dt_bias)
    none = torch.zeros_like(mixed)
    return *select_backward_op(none, d_dt.contiguous(), past, dB, dC, mixed, selection, *weights, ctx.backend), None


select_op.register_autograd(_differentiate, setup_context=_save)
