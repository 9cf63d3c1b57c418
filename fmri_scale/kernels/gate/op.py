"""Gate and out-projection as one operator, `fmri_scale::gate_linear`; it saves its inputs and not their product."""

import torch
from torch import Tensor

from fmri_scale.kernels.autodiff import contiguous
from fmri_scale.kernels.backends import implementation


@torch.library.custom_op("fmri_scale::gate_linear", mutates_args=())
def gate_linear_op(y: Tensor, z: Tensor, weight: Tensor, past: Tensor | None, backend: str) -> Tensor:
    """Run the forward pass on the backend that fits the device."""
    return implementation("gate", backend, y.device).forward(y, z, weight, past).contiguous()


@torch.library.custom_op("fmri_scale::gate_linear_backward", mutates_args=())
def gate_linear_backward_op(
    d_out: Tensor, y: Tensor, z: Tensor, weight: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, z and weight."""
    return contiguous(implementation("gate", backend, y.device).backward(d_out, y, z, weight))


@gate_linear_op.register_fake
def _(y, z, weight, past, backend):
    return y.new_empty(*y.shape[:-1], weight.shape[0])


@gate_linear_backward_op.register_fake
def _(d_out, y, z, weight, backend):
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in (y, z, weight))


def _save(ctx, inputs, output):
    y, z, weight, past, ctx.backend = inputs
    ctx.has_past = past is not None
    ctx.save_for_backward(y, z, weight)


def _differentiate(ctx, d_out):
    grads = gate_linear_backward_op(d_out.contiguous(), *ctx.saved_tensors, ctx.backend)
    return *grads, d_out if ctx.has_past else None, None


gate_linear_op.register_autograd(_differentiate, setup_context=_save)
