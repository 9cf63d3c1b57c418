"""Random number generators of a rank: seeded once, saved with every checkpoint, restored on resume.

Data order, masks and dropout of the model are keyed by clip and do not depend on these; they are kept for
anything else that draws numbers, so that a resumed run is the unbroken run whatever it calls.
States are JSON: bytes in base64, no pickle.
"""

import base64
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmri_scale.errors import CheckpointError


def seed(value: int, rank: int, deterministic: bool) -> None:
    """Seed python, numpy and torch (all devices) for a rank; refuse operations that do not repeat, where wanted."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # A help in finding defects that is on by default and fills every new buffer.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    mixed = int(np.random.SeedSequence([value & 0xFFFFFFFF, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def capture() -> dict[str, Any]:
    """Return the state of all generators of this process, JSON-able."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, next_gauss = random.getstate()
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(torch.cuda.get_rng_state())] if torch.cuda.is_available() else [],
    }


def restore(path: Path) -> None:
    """Set the generators of this process to a state that `capture` returned.

    Raises
    ------
    CheckpointError : the file is missing or no such state.
    """
    try:
        state = json.loads(path.read_text())
        version, internal, next_gauss = state["python"]
        random.setstate((version, tuple(internal), next_gauss))
        np.random.set_state(tuple(state["numpy"]))
        torch.set_rng_state(_decode(state["torch"]))
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(_decode(state["cuda"][0]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the state of random number generators ({error})") from error


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
