"""Put the weights of a checkpoint together without a running engine: fp32, under the model's own names.

The parameters of a run are fp32 throughout (training/ds_config.py says why), so nothing is lost here.
"""

from pathlib import Path

import torch

from fmri_scale.checkpoint import average, fragments
from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.checkpoint.newest import locate
from fmri_scale.checkpoint.state import read_state
from fmri_scale.errors import CheckpointError

PREFIX = "model."
"The engine trains a module that holds the model under this name."


def consolidated_state(path: str | Path, averaged: bool = False) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint.

    Parameters
    ----------
    path : a checkpoint's folder, or a run's folder (its newest whole checkpoint).
    averaged : the moving average of the weights (`optim.ema_decay`) instead of the weights of the last step.

    Returns
    -------
    parameter name of `models.MaskedAutoencoder` -> float32 tensor on the CPU.

    Raises
    ------
    CheckpointError : no whole checkpoint, files that do not fit together, or no average where one is wanted.
    """
    checkpoint = locate(path)
    state = read_state(checkpoint.path)
    if averaged and not average.is_kept(checkpoint.path):
        raise CheckpointError(f"{checkpoint.path}: keeps no average of the weights; train with optim.ema_decay")
    saved = fragments.read_weights(checkpoint.engine, state.zero_stage, state.world_size)
    if averaged:
        saved.pieces = average.read(checkpoint.path, state.world_size).pieces
    return {_own_name(name, checkpoint.path): saved.whole(name) for name in saved.shapes}


def parameter_shapes(checkpoint: CheckpointDir) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter in a checkpoint by the model's own names, reading no weights."""
    shapes = fragments.read_shapes(checkpoint.engine, read_state(checkpoint.path).zero_stage)
    return {_own_name(name, checkpoint.path): shape for name, shape in shapes.items()}


def _own_name(name: str, folder: Path) -> str:
    if not name.startswith(PREFIX):
        raise CheckpointError(f"{folder}: parameter {name!r} is not below {PREFIX!r}; of another program?")
    return name.removeprefix(PREFIX)
