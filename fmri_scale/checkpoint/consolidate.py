"""Put the weights of a checkpoint together without a running engine: fp32, under the model's own names.

ZeRO 0 to 2 keep the whole module in one file. ZeRO 3 keeps a slice of every parameter on every rank: each
parameter is padded to a multiple of the number of ranks and cut evenly, the slices are laid end to end.
The parameters of a run are fp32 throughout (training/ds_config.py says why), so nothing is lost here.
"""

import math
from pathlib import Path
from typing import Any

import torch

from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.checkpoint.newest import locate
from fmri_scale.checkpoint.reading import load_tensors
from fmri_scale.checkpoint.state import read_state
from fmri_scale.errors import CheckpointError

PREFIX = "model."
"The engine trains a module that holds the model under this name."
WHOLE = "mp_rank_00_model_states.pt"
"DeepSpeed's file with the whole module, for ZeRO 0 to 2."


def consolidated_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint.

    Parameters
    ----------
    path : a checkpoint's folder, or a run's folder (its newest whole checkpoint).

    Returns
    -------
    parameter name of `models.MaskedAutoencoder` -> float32 tensor on the CPU.

    Raises
    ------
    CheckpointError : no whole checkpoint, or files that do not fit together.
    """
    checkpoint = locate(path)
    state = read_state(checkpoint.path)
    if state.zero_stage == 3:
        weights = _join(checkpoint.engine, state.world_size)
    else:
        weights = load_tensors(checkpoint.engine / WHOLE)["module"]
    return {_own_name(name, checkpoint.path): tensor.detach().float().clone() for name, tensor in weights.items()}


def parameter_shapes(checkpoint: CheckpointDir) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter in a checkpoint by the model's own names, reading no weights."""
    if read_state(checkpoint.path).zero_stage == 3:
        shapes = _sliced_shapes(checkpoint.engine)
    else:
        module = load_tensors(checkpoint.engine / WHOLE)["module"]
        shapes = {name: tuple(tensor.shape) for name, tensor in module.items()}
    return {_own_name(name, checkpoint.path): shape for name, shape in shapes.items()}


def _own_name(name: str, folder: Path) -> str:
    if not name.startswith(PREFIX):
        raise CheckpointError(f"{folder}: parameter {name!r} is not below {PREFIX!r}; of another program?")
    return name.removeprefix(PREFIX)


def _join(engine: Path, world_size: int) -> dict[str, torch.Tensor]:
    """Return the full parameters of a ZeRO-3 checkpoint."""
    slices = [_flat_slice(engine, rank) for rank in range(world_size)]
    shapes = _sliced_shapes(engine)
    lengths = {name: -(-math.prod(shape) // world_size) for name, shape in shapes.items()}
    if any(part.numel() != sum(lengths.values()) for part in slices):
        raise CheckpointError(f"{engine}: the ranks' slices do not add up to the parameters; files of different runs?")
    weights: dict[str, torch.Tensor] = {}
    offset = 0
    for name, shape in shapes.items():
        whole = torch.cat([part.narrow(0, offset, lengths[name]) for part in slices])
        weights[name] = whole[: math.prod(shape)].view(shape)
        offset += lengths[name]
    return weights


def _sliced_shapes(engine: Path) -> dict[str, tuple[int, ...]]:
    """Return the full shapes of ZeRO-3's parameters in the order of their slices."""
    groups = load_tensors(engine / "zero_pp_rank_0_mp_rank_00_model_states.pt")["param_shapes"]
    return {name: tuple(shape) for group in groups for name, shape in group.items()}


def _flat_slice(engine: Path, rank: int) -> torch.Tensor:
    """Return one rank's slices of all parameters, end to end."""
    content: dict[str, Any] = load_tensors(engine / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return torch.cat([group.flatten() for group in content["optimizer_state_dict"]["fp32_flat_groups"]])
