"""What a checkpoint's files hold of each parameter, whatever ZeRO stage and number of ranks wrote them.

Weights and Adam's two moments come as pieces of the flattened parameter. ZeRO 0 keeps everything in one file. ZeRO 1
and 2 keep the weights there, and cut the moments of a group's parameters, laid end to end, evenly over the ranks.
ZeRO 3 pads each parameter to a multiple of the ranks and cuts it evenly. Tensors are mapped from the files, not read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmri_scale.checkpoint.reading import load_tensors
from fmri_scale.errors import CheckpointError

WHOLE = "mp_rank_00_model_states.pt"
"DeepSpeed's file with the whole module, for ZeRO 0 to 2."
WEIGHT, MEAN, SQUARE = "weight", "exp_avg", "exp_avg_sq"
MOMENTS = (MEAN, SQUARE)


@dataclass(frozen=True)
class Piece:
    """Consecutive values `[n]` of a flattened parameter, and where they begin in it."""

    start: int
    values: Tensor


@dataclass
class Saved:
    """The state of every parameter.

    Attributes
    ----------
    shapes : by the engine's name of the parameter.
    pieces : (name, WEIGHT or a moment) -> pieces; none for moments of a parameter that has never had a gradient.
    adam_steps : updates made so far, which the moments' bias correction needs.
    counters : DeepSpeed's own counts: global_steps, global_samples, skipped_steps.
    """

    shapes: dict[str, tuple[int, ...]]
    pieces: dict[tuple[str, str], list[Piece]] = field(default_factory=dict)
    adam_steps: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, kind: str, start: int, values: Tensor) -> None:
        """Add a piece; an empty one is left out."""
        if values.numel():
            self.pieces.setdefault((name, kind), []).append(Piece(start, values))

    def fill(self, name: str, kind: str, start: int, out: Tensor) -> None:
        """Write the values from `start` on of a flattened parameter into `out` `[n]`.

        Raises
        ------
        CheckpointError : the files do not hold all of them.
        """
        found = self.pieces.get((name, kind), [])
        if kind != WEIGHT and not found:
            out.zero_()
            return
        filled, end = 0, start + out.numel()
        for piece in found:
            low, high = max(start, piece.start), min(end, piece.start + piece.values.numel())
            if low < high:
                out[low - start : high - start].copy_(piece.values[low - piece.start : high - piece.start])
                filled += high - low
        if filled != out.numel():
            raise CheckpointError(
                f"parameter {name}: the checkpoint holds {filled} of {out.numel()} values ({kind}); files of different "
                "runs?"
            )

    def whole(self, name: str, kind: str = WEIGHT) -> Tensor:
        """Return a parameter's values as float32 of its shape, a copy."""
        values = torch.empty(math.prod(self.shapes[name]))
        self.fill(name, kind, 0, values)
        return values.view(self.shapes[name])


def read(engine: Path, zero_stage: int, world_size: int, order: Sequence[str]) -> Saved:
    """Return weights and optimizer state in the files of a checkpoint.

    Parameters
    ----------
    engine : folder of DeepSpeed's files.
    zero_stage, world_size : of the run that wrote them.
    order : names of the parameters in the optimizer's order, which ZeRO 0 does not write down.

    Raises
    ------
    CheckpointError : files that are missing, damaged or do not fit together.
    """
    if zero_stage == 3:
        return _sliced(engine, world_size, moments=True)
    saved = _whole(engine)
    if zero_stage:
        _add_flat_moments(saved, engine, world_size)
    else:
        _add_whole_moments(saved, load_tensors(engine / WHOLE)["optimizer"], order)
    return saved


def read_weights(engine: Path, zero_stage: int, world_size: int) -> Saved:
    """Return the weights alone; parameters as in `read`."""
    return _sliced(engine, world_size, moments=False) if zero_stage == 3 else _whole(engine)


def read_shapes(engine: Path, zero_stage: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters."""
    if zero_stage == 3:
        groups = load_tensors(_states(engine, 0, "model"))["param_shapes"]
        return {name: tuple(shape) for group in groups for name, shape in group.items()}
    return _whole(engine).shapes


def _states(engine: Path, rank: int, kind: str) -> Path:
    return engine / f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"


def _counters(content: dict[str, Any]) -> dict[str, int]:
    return {key: content[key] for key in ("global_steps", "global_samples", "skipped_steps") if key in content}


def _whole(engine: Path) -> Saved:
    """Return the weights in the file of the whole module."""
    content = load_tensors(engine / WHOLE)
    module = content["module"]
    saved = Saved({name: tuple(tensor.shape) for name, tensor in module.items()}, counters=_counters(content))
    for name, tensor in module.items():
        saved.add(name, WEIGHT, 0, tensor.detach().reshape(-1))
    return saved


def _add_whole_moments(saved: Saved, optimizer: dict[str, Any], order: Sequence[str]) -> None:
    """Add the moments of ZeRO 0: by the parameter's number in the optimizer."""
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    if len(numbers) != len(order):
        raise CheckpointError(f"the checkpoint's optimizer has {len(numbers)} parameters, the run's {len(order)}")
    for number, name in zip(numbers, order, strict=True):
        state = optimizer["state"].get(number, {})
        for kind in MOMENTS if state else ():
            saved.add(name, kind, 0, state[kind].reshape(-1))
        saved.adam_steps = max(saved.adam_steps, float(state.get("step", 0.0)))


def _add_flat_moments(saved: Saved, engine: Path, world_size: int) -> None:
    """Add the moments of ZeRO 1 and 2: a rank's file says where in its part of a group each parameter lies."""
    begin: dict[str, int] = {}
    for rank in range(world_size):
        content = load_tensors(_states(engine, rank, "optim"))["optimizer_state_dict"]
        state = content["base_optimizer_state"]["state"]
        for group, mapping in enumerate(content["param_slice_mappings"]):
            saved.adam_steps = float(state[group]["step"]) if state else 0.0
            for name, place in mapping.items():
                for kind in MOMENTS if state else ():
                    saved.add(name, kind, begin.get(name, 0), state[group][kind].narrow(0, *_address(place)))
                begin[name] = begin.get(name, 0) + _address(place)[1]


def _address(place: Any) -> tuple[int, int]:
    """Return start and length of DeepSpeed's `fragment_address`, or of the shell that stands for it."""
    return place.start, place.numel


def _sliced(engine: Path, world_size: int, moments: bool) -> Saved:
    """Return what the ranks of ZeRO 3 hold: a part of every parameter each, end to end."""
    content = load_tensors(_states(engine, 0, "model"))
    saved = Saved(read_shapes(engine, 3), counters=_counters(content))
    for rank in range(world_size):
        optimizer = load_tensors(_states(engine, rank, "optim"))["optimizer_state_dict"]
        state = optimizer["optimizer_state_dict"]["state"] if moments else {}
        for group, shapes in enumerate(content["param_shapes"]):
            flat = {WEIGHT: optimizer["fp32_flat_groups"][group].flatten()}
            if state:
                flat |= {kind: state[group][kind] for kind in MOMENTS}
                saved.adam_steps = float(state[group]["step"])
            _add_slices(saved, flat, shapes, rank, world_size)
    return saved


def _add_slices(saved: Saved, flat: dict[str, Tensor], shapes: Any, rank: int, world_size: int) -> None:
    """Add one rank's part of the parameters of a group, padding left out."""
    lengths = {name: -(-math.prod(shape) // world_size) for name, shape in shapes.items()}
    if any(values.numel() != sum(lengths.values()) for values in flat.values()):
        raise CheckpointError("the ranks' slices do not add up to the parameters; files of different runs?")
    offset = 0
    for name, shape in shapes.items():
        start = rank * lengths[name]
        count = max(0, min(lengths[name], math.prod(shape) - start))
        for kind, values in flat.items():
            saved.add(name, kind, start, values.narrow(0, offset, count))
        offset += lengths[name]
