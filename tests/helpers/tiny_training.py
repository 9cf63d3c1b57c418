"""The smallest run that is a real one: a random corpus, a model of a few thousand weights, fast on one core."""

import json
from pathlib import Path

from tests.helpers.corpora import Segment, write_corpus

SHAPE = {
    "model.image_size": [24, 24, 24],
    "model.num_frames": 4,
    "model.embed_dim": 8,
    "model.depths": [1, 1],
    "model.window_size": [2, 2, 2, 2],
    "model.first_window_size": [2, 2, 2, 2],
    "model.state_dim": 4,
    "optim.lr": 2e-3,
    "optim.warmup_steps": 3,
    "optim.weight_decay": 0.1,
    "optim.global_batch": 4,
    "log.every_steps": 1,
    "log.wandb": "off",
    "engine.deterministic": True,
}


def write_tiny_corpus(folder: Path, frames: int = 40) -> Path:
    """Write a corpus of a few segments of random codes, train and val."""
    segments = [Segment(frames)] * 5 + [Segment(12, split="val")]
    return write_corpus(folder, segments, num_voxels=4000)


def arguments(run_dir: Path, corpus: Path, **changes: object) -> list[str]:
    """Return command-line arguments of a tiny run; `changes` have `__` for a dot: `optim__steps=3`."""
    values = {**SHAPE, **{key.replace("__", "."): value for key, value in changes.items()}}
    values |= {"run_dir": str(run_dir), "data.corpus": str(corpus)}
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
