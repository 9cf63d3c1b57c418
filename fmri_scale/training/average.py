"""A moving average of the weights beside those that are trained, often better to evaluate and to release.

average <- d average + (1 - d) weights after every step that was taken, with d = min(decay, (1 + k) / (10 + k)) after k
steps of the run, so that a short run does not keep its random beginning (as TensorFlow's ExponentialMovingAverage).
Every rank keeps the part of each parameter that ZeRO 3 would give it, so a model of u bytes costs u / ranks, at any
stage; in fp32, on the device where the weights are. Written with each checkpoint (checkpoint/average.py).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmri_scale.checkpoint import average
from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.checkpoint.state import TrainingState
from fmri_scale.log import get_logger

log = get_logger(__name__)


class Average:
    """This rank's part of the average."""

    def __init__(self, module: nn.Module, decay: float, rank: int, world_size: int) -> None:
        self._module, self._decay, self._rank, self._world_size = module, decay, rank, world_size
        self._values = {name: part.clone() for name, part in self._parts()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights in after a step that was taken, the run's `step`-th."""
        weight = 1.0 - decay_at(self._decay, step)
        torch._foreach_lerp_(list(self._values.values()), [part for _, part in self._parts()], weight)

    def save(self, folder: Path) -> list[Path]:
        """Write this rank's part into a checkpoint's folder; return the file."""
        return [average.write(folder, self._rank, {name: values.cpu() for name, values in self._values.items()})]

    def load(self, checkpoint: CheckpointDir, state: TrainingState) -> None:
        """Take the average of a checkpoint, of any number of ranks; without one it begins with the weights."""
        if not average.is_kept(checkpoint.path):
            log.warning("%s keeps no average of the weights: it begins here", checkpoint.path)
            self._values = {name: part.clone() for name, part in self._parts()}
            return
        saved = average.read(checkpoint.path, state.world_size)
        for name, values in self._values.items():
            saved.fill(name, average.WEIGHT, self._begin(name, values), values)

    def _begin(self, name: str, values: Tensor) -> int:
        parameter: Any = self._module.get_parameter(name)
        return self._rank * -(-getattr(parameter, "ds_numel", parameter.numel()) // self._world_size)

    def _parts(self) -> list[tuple[str, Tensor]]:
        """Return (name, flat part of this rank) of every parameter, padding left out."""
        return [(name, part_of(p, self._rank, self._world_size)) for name, p in self._module.named_parameters()]


def part_of(parameter: Any, rank: int, world_size: int) -> Tensor:
    """Return a rank's part `[n]` of a parameter as a view; the last ranks' may be shorter or empty."""
    sliced = hasattr(parameter, "ds_tensor")  # by ZeRO 3
    numel = parameter.ds_numel if sliced else parameter.numel()
    length = -(-numel // world_size)
    count = max(0, min(length, numel - rank * length))
    flat = parameter.ds_tensor.data if sliced else parameter.data.view(-1)[min(rank * length, numel) :]
    return flat[:count]


def decay_at(decay: float, step: int) -> float:
    """Return the decay after `step` steps of the run."""
    return min(decay, (1 + step) / (10 + step))
