"""Whether all weights are finite: looked at after every step that was skipped, and before a checkpoint is written.

No step heals a weight that is NaN or infinite: every later loss would be NaN too, and a checkpoint with it would be
whole by its checksums and bad for ever. The gradient never brings one (training/guards.py); a faulty device can.
"""

import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fmri_scale.checkpoint.collective import gather
from fmri_scale.errors import TrainingError
from fmri_scale.training.average import part_of


def require(module: nn.Module, step: int) -> None:
    """Look at the weights that each rank holds after a step; every rank calls it.

    Raises
    ------
    TrainingError : one is not finite; on every rank, naming the ranks, their hosts and a parameter.
    """
    everyone = gather((socket.gethostname(), first_bad(module)))
    bad = [f"{rank} ({host})" for rank, (host, name) in enumerate(everyone) if name]
    if not bad:
        return
    first = next(name for _, name in everyone if name)
    raise TrainingError(
        f"after step {step} weights of rank {', '.join(bad)} are not finite (first in {first}), which no further step "
        "can heal: look at that machine's memory and device, and start the same command again; it goes on from the "
        "newest checkpoint, in which all weights are finite"
    )


@torch.no_grad()
def first_bad(module: nn.Module) -> str:
    """Return the name of a parameter of which this rank holds a value that is not finite; empty without one."""
    held = [(name, _held(parameter)) for name, parameter in module.named_parameters()]
    fine = torch.stack([torch.isfinite(values).all() for _, values in held]).tolist()
    return next((name for (name, _), is_fine in zip(held, fine, strict=True) if not is_fine), "")


def _held(parameter: Any) -> Tensor:
    """Return the values of a parameter that lie on this rank: all, or ZeRO 3's share of it without padding."""
    if parameter.numel() == getattr(parameter, "ds_numel", parameter.numel()):
        return parameter
    return part_of(parameter, dist.get_rank(), dist.get_world_size())
