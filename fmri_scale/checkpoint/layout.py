"""Where a run keeps its checkpoints, and how they are called. No reading, no writing.

RUN/checkpoints/step_00000010/          a whole checkpoint: only the commit's rename gives this name
RUN/checkpoints/step_00000010/engine/   DeepSpeed's files
RUN/checkpoints/step_00000010.tmp/      being written, or left by a killed run
RUN/checkpoints/step_00000010.old/      being deleted
RUN/checkpoints/latest                  name of the newest, for people; resuming trusts the manifests
"""

import re
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = "checkpoints"
LATEST = "latest"
MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.yaml"
ENGINE = "engine"
CORPUS = "corpus.json"
MASK = "mask.nii.gz"

_NAME = re.compile(r"step_(\d{8,})")
_LEFTOVER = re.compile(r"step_\d{8,}\.(tmp|old)")


@dataclass(frozen=True)
class CheckpointDir:
    """A committed checkpoint: its folder and the number of optimizer steps behind it."""

    path: Path
    step: int

    @property
    def engine(self) -> Path:
        """Folder of DeepSpeed's files."""
        return self.path / ENGINE

    def rng(self, rank: int) -> Path:
        """File of a rank's random number generators."""
        return rng_file(self.path, rank)


def rng_file(folder: Path, rank: int) -> Path:
    """Return the file of a rank's random number generators inside a checkpoint's folder."""
    return folder / f"rng_{rank:05d}.json"


def folder(run_dir: Path) -> Path:
    """Return the folder that holds a run's checkpoints."""
    return run_dir / CHECKPOINTS


def step_dir(run_dir: Path, step: int) -> Path:
    """Return the final place of the checkpoint after `step` optimizer steps."""
    return folder(run_dir) / f"step_{step:08d}"


def as_checkpoint(path: Path) -> CheckpointDir | None:
    """Return the checkpoint a folder's name stands for, or None for any other name."""
    match = _NAME.fullmatch(path.name)
    return CheckpointDir(path, int(match.group(1))) if match else None


def committed(run_dir: Path) -> list[CheckpointDir]:
    """Return the checkpoints under their final names, newest first; none is verified here."""
    if not folder(run_dir).is_dir():
        return []
    found = [as_checkpoint(path) for path in folder(run_dir).iterdir() if path.is_dir()]
    return sorted((c for c in found if c is not None), key=lambda c: c.step, reverse=True)


def leftovers(run_dir: Path) -> list[Path]:
    """Return folders that a killed run left half written or half deleted."""
    if not folder(run_dir).is_dir():
        return []
    return sorted(path for path in folder(run_dir).iterdir() if _LEFTOVER.fullmatch(path.name))
