"""Norm and in-projection as one operator, `fmri_scale::norm_project`; it saves its inputs and nothing normalised."""

import torch
from torch import Tensor

from fmri_scale.kernels.autodiff import contiguous
from fmri_scale.kernels.backends import implementation


@torch.library.custom_op("fmri_scale::norm_project", mutates_args=())
def norm_project_op(
    x: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Run the forward pass on the backend that fits the device."""
    return contiguous(implementation("project", backend, x.device).forward(x, gain, shift, weight, eps))


@torch.library.custom_op("fmri_scale::norm_project_backward", mutates_args=())
def norm_project_backward_op(
    d_first: Tensor,
    d_second: Tensor,
    past: Tensor | None,
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    weight: Tensor,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gain, shift and weight; `past`, what reaches x past this operator, is added to the first."""
    inputs = (d_first, d_second, past, x, gain, shift, weight, eps)
    return contiguous(implementation("project", backend, x.device).backward(*inputs))


@norm_project_op.register_fake
def _(x, gain, shift, weight, eps, backend):
    return tuple(x.new_empty(*x.shape[:-1], weight.shape[0] // 2) for _ in range(2))


@norm_project_backward_op.register_fake
def _(d_first, d_second, past, x, gain, shift, weight, eps, backend):
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, gain, shift, weight))


def _save(ctx, inputs, output):
    *tensors, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, d_first, d_second):
    grads = norm_project_backward_op(
        d_first.contiguous(), d_second.contiguous(), None, *ctx.saved_tensors, ctx.eps, ctx.backend
    )
    return *grads, None, None


norm_project_op.register_autograd(_differentiate, setup_context=_save)
