"""Agreement between ranks outside the training step: gather plain objects, act on rank 0 with one outcome for all.

Without a process group there is one rank. Objects travel between the ranks of one run only.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from fmri_scale.errors import FmriScaleError
from sharding.errors import ShardingError

T = TypeVar("T")


def rank() -> int:
    """Return this process' rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather(value: T) -> list[T]:
    """Return every rank's `value` in the order of ranks, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_rank_0(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its result on every rank; its error is raised on every rank.

    Raises
    ------
    FmriScaleError, ShardingError, OSError : as raised by `action`, so that no rank waits for one that has stopped.
    """
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except (FmriScaleError, ShardingError, OSError) as error:
            outcome[1] = error
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
