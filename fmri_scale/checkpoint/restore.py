"""Whether a run may continue from a checkpoint, and what has changed since; then the loading itself.

The guard compares the configuration in the checkpoint with the one the run was started with. Changes of the
model, the masks or the input are refused unless `checkpoint.allow_change` is set; all others are reported and taken
over.
"""

import dataclasses
from typing import Any

from fmri_scale.checkpoint.consolidate import parameter_shapes
from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.checkpoint.state import TrainingState, read_config, read_state
from fmri_scale.config import Config
from fmri_scale.errors import CheckpointError
from fmri_scale.log import counted, get_logger

log = get_logger(__name__)

MODEL = ("model.", "mask.", "augment.")
INPUT = ("seed", "data.normalisation", "optim.global_batch", "optim.base_width")
FREE = ("model.backend", "model.checkpoint_blocks")
UNTOLD = ("run_dir", "data.", "checkpoint.", "log.")
"Keys whose change is told by others (data, by the stream) or nobody's concern (places, reporting)."


def differences(saved: Config, wanted: Config) -> list[tuple[str, Any, Any]]:
    """Return (key, saved value, wanted value) for every key that differs, in the schema's order."""
    old, new = _flat(saved), _flat(wanted)
    return [(key, old[key], new[key]) for key in new if old[key] != new[key]]


def check(checkpoint: CheckpointDir, config: Config, world_size: int) -> TrainingState:
    """Return the checkpoint's training state if the run may continue from it; report harmless changes.

    The corpus and what else decides the order of clips is compared by the data stream itself when it is given the
    state in the checkpoint.

    Raises
    ------
    CheckpointError : another model, mask, seed, normalisation or global batch (unless `checkpoint.allow_change`).
    """
    state = read_state(checkpoint.path)
    changed = differences(read_config(checkpoint.path), config)
    refused = [_say(c) for c in changed if _is_fixed(c[0])]
    if refused and not config.checkpoint.allow_change:
        raise CheckpointError(
            f"{checkpoint.path}: was trained with another model or input: {', '.join(refused)}; restore these "
            "values, choose a new run_dir, or set checkpoint.allow_change=true"
        )
    if not same_layout(state, config.engine.zero_stage, world_size):
        log.info(
            "written by %s, goes on with %s",
            _layout(state.world_size, state.zero_stage),
            _layout(world_size, config.engine.zero_stage),
        )
    for change in changed:
        if _is_fixed(change[0]) or not change[0].startswith(UNTOLD):
            log.warning("resuming with a changed configuration: %s", _say(change))
    return state


def check_shapes(checkpoint: CheckpointDir, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the checkpoint's parameters have the names and shapes of the model's."""
    saved = parameter_shapes(checkpoint)
    for name in sorted(saved.keys() | shapes.keys()):
        if saved.get(name) != shapes.get(name):
            raise CheckpointError(
                f"{checkpoint.path}: is of another model size: parameter {name} is {_shape(saved.get(name))} in the "
                f"checkpoint and {_shape(shapes.get(name))} in the model; restore the model's configuration or "
                "choose a new run_dir"
            )


def same_layout(state: TrainingState, zero_stage: int, world_size: int) -> bool:
    """Return whether the checkpoint's files are as a run of this ZeRO stage and number of ranks writes them."""
    return (state.world_size, state.zero_stage) == (world_size, zero_stage)


def _layout(world_size: int, zero_stage: int) -> str:
    return f"{counted(world_size, 'rank')} and ZeRO {zero_stage}"


def _is_fixed(key: str) -> bool:
    return key not in FREE and (key.startswith(MODEL) or key in INPUT)


def _say(change: tuple[str, Any, Any]) -> str:
    return f"{change[0]} {change[1]!r} -> {change[2]!r}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a scalar"


def _flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a section by dotted key; a mapping (mask.mixture) is one value, whatever it holds."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        flat.update(_flat(value, f"{key}.") if dataclasses.is_dataclass(value) else {key: value})
    return flat
