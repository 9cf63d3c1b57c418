"""All checks of one process' machine, in the order in which they are printed."""

import os
from collections.abc import Callable, Iterable, Iterator

import torch

from fmri_scale.config import Config
from fmri_scale.errors import FmriScaleError
from fmri_scale.training.doctor import machine, network, software, storage
from fmri_scale.training.doctor.findings import OK, WARN, Finding, guarded
from fmri_scale.training.ds_config import accumulation
from fmri_scale.training.estimate import Estimate, checkpoint_bytes, devices, estimate
from sharding.errors import ShardingError


def examine(
    config: Config, device: torch.device, rank: int = 0, world_size: int = 1, ranks_here: int = 1
) -> list[Finding]:
    """Return the findings about the machine of this process.

    Parameters
    ----------
    config : what shall be trained; a plain `Config()` looks at the machine alone.
    device : this rank's.
    ranks_here : ranks on this machine.
    """
    several = world_size > ranks_here
    plan = _plan(config, device, world_size, ranks_here)
    needed = plan.read_per_node if plan else 0.0
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "packages": software.versions,
        "GPU": lambda: software.device(config, device),
        "kernels": lambda: software.kernels(config, device),
        "batch": lambda: _batch(config, world_size),
        "predicted": lambda: _predicted(plan),
        "memory": lambda: machine.memory(config.data.prefetch_mb, ranks_here),
        "limits": lambda: machine.limits(device.type == "cuda"),
        "environment": lambda: machine.environment(os.environ, ranks_here),
        "host name": lambda: machine.name_resolution(several),
        "corpus": lambda: storage.corpora(config, needed, rank == 0),
    }
    if rank == 0:
        checks["run folder"] = lambda: storage.run_folder(config, checkpoint_bytes(config))
        checks["W&B"] = lambda: network.wandb(config)
        checks["port"] = network.listening
    return [finding for check, look in checks.items() for finding in guarded(check, look)]


def _plan(config: Config, device: torch.device, world_size: int, ranks_here: int) -> Estimate | None:
    """Return what the run will need here; None where it cannot be told (the checks say why, or the GPU is unknown)."""
    try:
        here = devices.find("" if device.type == "cuda" else "cpu")
        return estimate(config, max(1, world_size // ranks_here), ranks_here, here)
    except (FmriScaleError, ShardingError):
        return None


def _batch(config: Config, world_size: int) -> Iterator[Finding]:
    optim = config.optim
    steps = accumulation(optim.global_batch, optim.micro_batch, world_size)
    text = f"{optim.global_batch} clips = {world_size} ranks x {optim.micro_batch} x {steps} forward passes"
    yield Finding("batch", OK, text)


def _predicted(plan: Estimate | None) -> Iterator[Finding]:
    if plan is None:
        return
    peak, there = plan.memory.peak, plan.device_memory
    found = f"{peak / 1e9:.1f} GB of {there / 1e9:.0f} GB a rank, {plan.step_s:.3g} s a step (fmri-scale estimate)"
    remedy = "lower optim.micro_batch, raise engine.zero_stage, or set model.checkpoint_blocks=true"
    yield Finding("predicted", WARN if peak > there else OK, found, remedy)
