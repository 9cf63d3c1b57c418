"""The loss as one operator, `fmri_scale::masked_loss`: with the loss it returns its gradients, which backward scales.

What is saved for the backward pass is the gradients: of the size of the features, and of the head.
`fmri_scale::hidden_values` counts what a mask hides; it has no gradient.
"""

from typing import Sequence  # noqa: UP035 - torch before 2.7 reads operators' types from typing alone

import torch
from torch import Tensor

from fmri_scale.kernels.autodiff import contiguous
from fmri_scale.kernels.backends import implementation
from fmri_scale.kernels.clips import CodedClips, Hidden


@torch.library.custom_op("fmri_scale::masked_loss", mutates_args=())
def masked_loss_op(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    codes: Tensor,
    scale: Tensor,
    gain: Tensor,
    shift: Tensor,
    outside: Tensor,
    lookup: Tensor,
    given: Tensor | None,
    epoch: Tensor | None,
    clip_ids: Tensor | None,
    patches: Tensor | None,
    seed: int,
    num_hidden: int,
    image: Sequence[int],
    patch: Sequence[int],
    unit: Sequence[int],
    brain_only: bool,
    with_gradients: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and its gradients to features, weight and bias, which are empty unless `with_gradients`."""
    clips = CodedClips(codes, scale, gain, shift, outside, lookup, tuple(image), tuple(patch))  # type: ignore[arg-type]
    hidden = Hidden(given, epoch, clip_ids, seed, num_hidden, tuple(unit))  # type: ignore[arg-type]
    module = implementation("loss", backend, codes.device)
    return contiguous(module.forward(clips, features, weight, bias, hidden, brain_only, with_gradients, patches))


@masked_loss_op.register_fake
def _(features, weight, bias, *rest):
    like = (features, weight, bias)
    loss = features.new_empty((), dtype=torch.promote_types(features.dtype, torch.float32))
    if not rest[-2]:
        return loss, *(v.new_empty(0) for v in like)
    return loss, *(torch.empty_like(v, memory_format=torch.contiguous_format) for v in like)


def _save(ctx, inputs, output):
    ctx.count = len(inputs)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _differentiate(ctx, upstream, *of_gradients):
    if torch.is_grad_enabled() and upstream.requires_grad:
        raise RuntimeError("fmri_scale::masked_loss has no second derivative: its gradients are constants")
    return *((g * upstream).to(g.dtype) for g in ctx.saved_tensors), *[None] * (ctx.count - 3)


masked_loss_op.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("fmri_scale::hidden_values", mutates_args=())
def hidden_values_op(
    values: Tensor,
    given: Tensor | None,
    epoch: Tensor | None,
    clip_ids: Tensor | None,
    seed: int,
    num_hidden: int,
    unit: Sequence[int],
    batch: int,
    grid: Sequence[int],
    backend: str,
) -> Tensor:
    """Values (M,) summed over the hidden tokens of each clip, int64 (B,)."""
    hidden = Hidden(given, epoch, clip_ids, seed, num_hidden, tuple(unit))  # type: ignore[arg-type]
    return implementation("loss", backend, values.device).hidden_values(values, hidden, batch, tuple(grid))


@hidden_values_op.register_fake
def _(values, given, epoch, clip_ids, seed, num_hidden, unit, batch, grid, backend):
    return values.new_empty(batch, dtype=torch.int64)
