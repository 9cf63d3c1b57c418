"""Continue from a checkpoint with another number of ranks or another ZeRO stage, from the files as they are.

DeepSpeed's own way, a universal checkpoint, is not taken: its converter unpickles, writes everything a second time
before a run can start, and knows no way between ZeRO 0, 1-2 and 3; its loading (0.19.8) copies the first group's
hyper-parameters to all groups and shares one step counter between the groups of ZeRO 3
(`test_deepspeeds_universal_loading_mixes_the_groups_up`). Here every rank takes its part of each parameter straight
from the mapped files (checkpoint/fragments.py) and hands it to DeepSpeed in the form that its ordinary loading expects;
the groups keep the hyper-parameters of the configuration.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fmri_scale.checkpoint import fragments
from fmri_scale.checkpoint.fragments import MOMENTS, WEIGHT, Saved
from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.checkpoint.state import TrainingState
from fmri_scale.errors import CheckpointError


@torch.no_grad()
def load(
    engine: Any, checkpoint: CheckpointDir, state: TrainingState, saved_order: list[str], order: list[str]
) -> None:
    """Put weights and optimizer state of a checkpoint into an engine of any ZeRO stage on any number of ranks.

    Parameters
    ----------
    saved_order, order : names of the parameters in the order of the optimizer's groups, of the run that wrote the
        checkpoint and of this one.

    Raises
    ------
    CheckpointError : files that do not hold the whole state, or an engine that keeps its state on NVMe.
    """
    if engine.zero_nvme_offload_optimizer():
        raise CheckpointError(
            f"{checkpoint.path}: cannot be resumed by another number of ranks or ZeRO stage into "
            "engine.offload_optimizer=nvme; resume once with cpu, then change to nvme"
        )
    saved = fragments.read(checkpoint.engine, state.zero_stage, state.world_size, saved_order)
    stage = engine.zero_optimization_stage()
    if stage == 3:
        _load_sliced(engine, saved)
    else:
        for name, parameter in engine.module.named_parameters():
            parameter.data.copy_(saved.whole(name))
        if stage:
            _load_flat(engine, saved)
        else:
            _load_whole(engine, saved, order)
    for counter, value in saved.counters.items():
        setattr(engine, counter, value)


def _load_whole(engine: Any, saved: Saved, order: list[str]) -> None:
    """Fill the optimizer of ZeRO 0, whose state goes by the parameter's number."""
    content = engine.optimizer.state_dict()
    content["state"] = {
        number: _moments(saved, {kind: saved.whole(name, kind) for kind in MOMENTS})
        for number, name in enumerate(order)
    }
    engine.optimizer.load_state_dict(content)


def _load_flat(engine: Any, saved: Saved) -> None:
    """Fill this rank's part of the flattened groups of ZeRO 1 or 2."""
    optimizer, parameters = engine.optimizer, dict(engine.module.named_parameters())
    content, masters, state = optimizer.state_dict(), [], {}
    for group, mapping in enumerate(content["param_slice_mappings"]):
        length = optimizer.single_partition_of_fp32_groups[group].numel()
        flat = {kind: torch.zeros(length) for kind in (WEIGHT, *MOMENTS)}
        for name, place in mapping.items():
            begin = parameters[name]._hp_mapping.lp_fragment_address.start
            for kind, values in flat.items():
                saved.fill(name, kind, begin, values.narrow(0, place.start, place.numel))
        masters.append(flat.pop(WEIGHT))
        state[group] = _moments(saved, flat)
    content["base_optimizer_state"]["state"] = state
    content["single_partition_of_fp32_groups"] = masters
    optimizer.load_state_dict(_for_this_rank(content), load_optimizer_states=True, load_from_fp32_weights=True)


def _load_sliced(engine: Any, saved: Saved) -> None:
    """Fill this rank's slices of all parameters of ZeRO 3."""
    optimizer, rank = engine.optimizer, dist.get_rank()
    optimizer.checkpoint_event_prologue()
    content, masters, state = optimizer.state_dict(), [], {}
    for group, shapes in enumerate(engine._get_zero_param_shapes()):
        lengths = {name: -(-shape.numel() // dist.get_world_size()) for name, shape in shapes.items()}
        flat = {kind: torch.zeros(sum(lengths.values())) for kind in (WEIGHT, *MOMENTS)}
        offset = 0
        for name, shape in shapes.items():
            start = rank * lengths[name]
            count = max(0, min(lengths[name], shape.numel() - start))
            for kind, values in flat.items():
                saved.fill(name, kind, start, values.narrow(0, offset, count))
            offset += lengths[name]
        masters.append(flat.pop(WEIGHT))
        state[group] = _moments(saved, flat)
    content["optimizer_state_dict"]["state"] = state
    content["fp32_flat_groups"] = masters
    optimizer.load_state_dict(_for_this_rank(content), load_optimizer_states=True)
    optimizer.checkpoint_event_epilogue()


def _moments(saved: Saved, moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of one of Adam's tensors, with a step counter of its own."""
    return {"step": torch.tensor(float(saved.adam_steps)), **moments}


def _for_this_rank(content: dict[str, Any]) -> list[Any]:
    """Return the list of all ranks' states that DeepSpeed picks its own from."""
    states: list[Any] = [None] * dist.get_world_size()
    states[dist.get_rank()] = content
    return states
