"""Tuned models and unfinished trainings on disk: safetensors and JSON, each file whole or not there.

FOLDER/tuned.safetensors  trained parameters and the statistics of features, under the names of `TunedModel`
FOLDER/tuned.json         method, release, classes, what was trained how, and the SHA-256 of the above; written last
FOLDER/state.safetensors  a training that goes on: parameters, the best so far, moments, and how far it is
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmri_scale.checkpoint.files import sha256, sync, write_json
from fmri_scale.errors import CheckpointError

RESULT, WEIGHTS, STATE = "tuned.json", "tuned.safetensors", "state.safetensors"
FORMAT = 1


def digest(*parts: Any) -> str:
    """Hash of everything that decides a training, given as JSON or bytes."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()


def save_result(folder: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a tuned model and forget the state of its training."""
    _save(folder / WEIGHTS, state, {})
    write_json(folder / RESULT, {"format": FORMAT, **facts, "sha256": sha256(folder / WEIGHTS)})
    (folder / STATE).unlink(missing_ok=True)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What is known of a tuned model; None where there is none.

    Raises
    ------
    CheckpointError
        The file is damaged or of a newer format.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        newer = int(facts["format"]) > FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a tuned model ({error}); delete its folder and tune again") from error
    if newer:
        raise CheckpointError(f"{path}: of format {facts['format']}, this program reads up to {FORMAT}; update it")
    return facts


def read_weights(folder: Path, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters of a tuned model, compared with their hash."""
    path = folder / WEIGHTS
    try:
        whole = sha256(path) == facts["sha256"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete its folder and tune again") from error
    if not whole:
        raise CheckpointError(f"{path}: does not fit the sha256 in {RESULT}; delete its folder and tune again")
    return load_file(path)


def save_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write down how far a training is."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder / STATE, tensors, {"facts": json.dumps(facts)})


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_state` wrote; None where there is none.

    Raises
    ------
    CheckpointError
        The file is damaged.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
        return load_file(path), facts
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it to train again") from error


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside, metadata)
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)
