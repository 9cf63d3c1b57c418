"""The embedding as one operator, `fmri_scale::embed`; it saves its inputs, which are codes, and no activation."""

from typing import Sequence  # noqa: UP035 - torch before 2.7 reads operators' types from typing alone

import torch
from torch import Tensor

from fmri_scale.kernels.autodiff import contiguous
from fmri_scale.kernels.backends import implementation
from fmri_scale.kernels.clips import CodedClips, Hidden


@torch.library.custom_op("fmri_scale::embed", mutates_args=())
def embed_op(
    weight: Tensor,
    bias: Tensor,
    mask_tokens: Tensor,
    position: Tensor,
    time: Tensor,
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
    count: int,
    image: Sequence[int],
    patch: Sequence[int],
    unit: Sequence[int],
    slots: Sequence[int],
    backend: str,
) -> Tensor:
    """Run the forward pass on the backend that fits the device."""
    clips = CodedClips(codes, scale, gain, shift, outside, lookup, tuple(image), tuple(patch))  # type: ignore[arg-type]
    hidden = Hidden(given, epoch, clip_ids, seed, count, tuple(unit))  # type: ignore[arg-type]
    parameters = (weight, bias, mask_tokens, position, time)
    return implementation("embed", backend, codes.device).forward(clips, *parameters, hidden, tuple(slots), patches)


@torch.library.custom_op("fmri_scale::embed_backward", mutates_args=())
def embed_backward_op(
    dy: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask_tokens: Tensor,
    position: Tensor,
    time: Tensor,
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
    count: int,
    image: Sequence[int],
    patch: Sequence[int],
    unit: Sequence[int],
    slots: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight, bias, mask tokens, position and time."""
    clips = CodedClips(codes, scale, gain, shift, outside, lookup, tuple(image), tuple(patch))  # type: ignore[arg-type]
    hidden = Hidden(given, epoch, clip_ids, seed, count, tuple(unit))  # type: ignore[arg-type]
    parameters = (weight, bias, mask_tokens, position, time)
    module = implementation("embed", backend, codes.device)
    return contiguous(module.backward(dy, clips, *parameters, hidden, tuple(slots), patches))


@embed_op.register_fake
def _(weight, bias, mask_tokens, position, time, codes, *rest):
    listed = rest[8]
    positions = position.shape[0] if listed is None else listed.shape[0]
    return weight.new_empty(codes.shape[0], positions * time.shape[0], weight.shape[0])


@embed_backward_op.register_fake
def _(dy, weight, bias, mask_tokens, position, time, *rest):
    like = (weight, bias, mask_tokens, position, time)
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in like)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:15])
    ctx.settings = inputs[15:]


def _differentiate(ctx, dy):
    grads = embed_backward_op(dy.contiguous(), *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * (10 + len(ctx.settings))


embed_op.register_autograd(_differentiate, setup_context=_save)
