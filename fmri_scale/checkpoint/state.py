"""What a checkpoint says about the run beside weights and optimizer: one JSON object, no pickle.

`TrainingState` is written by the trainer and read on resume and by the release; random number generators lie in
one file per rank, since they differ.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmri_scale.checkpoint import files, layout
from fmri_scale.config import Config, load_config
from fmri_scale.errors import CheckpointError, ConfigError

SCHEMA_VERSION = 1


@dataclass
class TrainingState:
    """The run's position and origin."""

    step: int
    "Optimizer steps done, skipped ones included; the schedule is a function of it."
    clips: int
    "Clips consumed over all ranks since the run's beginning: the position in the global order."
    world_size: int
    "Ranks that wrote the checkpoint."
    zero_stage: int
    "DeepSpeed ZeRO stage of the files."
    corpus_id: str
    "Identity of the corpus the run was fed with."
    data: dict[str, Any] = field(default_factory=dict)
    "State of the data stream."
    guards: dict[str, int] = field(default_factory=dict)
    "Counts of skipped steps."
    watch: dict[str, Any] = field(default_factory=dict)
    "Losses that the next ones are compared with, and the count of spikes."
    wandb_id: str = ""
    "Run id at W&B; empty without W&B."
    metrics: dict[str, float] = field(default_factory=dict)
    "Last values that were logged."
    software: dict[str, str] = field(default_factory=dict)
    "Versions of the packages that made the checkpoint, and the git commit."
    schema_version: int = SCHEMA_VERSION


def write_state(folder: Path, state: TrainingState) -> None:
    """Write `state.json` into a checkpoint's folder."""
    files.write_json(folder / layout.STATE, dataclasses.asdict(state))


def read_state(folder: str | Path) -> TrainingState:
    """Return the training state of a checkpoint's folder.

    Raises
    ------
    CheckpointError : `state.json` is missing, unreadable or of a newer schema.
    """
    path = Path(folder) / layout.STATE
    try:
        content = json.loads(path.read_text())
        version = content["schema_version"]
        if version > SCHEMA_VERSION:
            raise CheckpointError(f"{path}: schema {version} is newer than {SCHEMA_VERSION}; use a newer fmri_scale")
        return TrainingState(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a training state ({error})") from error


def read_config(folder: str | Path) -> Config:
    """Return the resolved configuration that a checkpoint was trained with.

    Raises
    ------
    CheckpointError : `config.yaml` is missing or holds keys that this version does not know.
    """
    try:
        return load_config([Path(folder) / layout.CONFIG])
    except ConfigError as error:
        raise CheckpointError(f"{folder}: its configuration cannot be read: {error}") from error
