"""Clips of all ranks together, with gradients, for losses that compare clips with each other."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_clips(clips: Tensor) -> Tensor:
    """Return `[ranks * B, ...]` of every rank's `[B, ...]`, in the order of ranks.

    Every rank must then compute the same loss of it. The gradient that a rank gets for its own clips is times the
    number of ranks, so that the mean over ranks, which the engine takes, is the gradient of that one loss; no rank has
    to hear of the others in the backward pass.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return clips
    return _Gather.apply(clips)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, clips: Tensor) -> Tensor:
        parts = [torch.empty_like(clips, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, clips.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()
