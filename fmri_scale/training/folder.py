"""A run's folder: who may write in it, and what it says about the run while it lasts.

config.yaml       the resolved configuration of the latest start
status.json       running, done, requeue, interrupted or failed; trust it rather than a launcher's exit code
metrics.jsonl     a row a logged step            bad_steps.jsonl   steps that were skipped, with their clips
logs/rank_K.log   messages of every rank         pictures/         reconstructions, loss curve
checkpoints/      see checkpoint/layout.py       wandb/            W&B's own files
profile/          traces of chosen steps         logs/stacks_rank_K.txt   where each rank stood in a hang
"""

import fcntl
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any, TextIO

from fmri_scale.checkpoint import files, layout, retention
from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.checkpoint.newest import newest
from fmri_scale.config import Config, save_config
from fmri_scale.errors import CheckpointError, ConfigError, LaunchError
from fmri_scale.log import get_logger

log = get_logger(__name__)

STATUS = "status.json"
_LOCK = ".lock"


def take(run_dir: Path) -> TextIO:
    """Make the folder and lock it against a second run; keep the returned file open (rank 0).

    Raises
    ------
    ConfigError : the folder cannot be made or written.
    LaunchError : another process trains in it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / _LOCK).open("a+")
    except OSError as error:
        raise ConfigError(f"run_dir={run_dir}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip()
        raise LaunchError(f"{run_dir}: {holder} trains in this folder; stop it or choose another run_dir") from error
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s); make sure that no other run uses it", run_dir, error.strerror)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def absent(run_dir: Path) -> list[Path]:
    """Return the folder and those above it that are not there yet, from the inside out."""
    return [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]


def remove(made: list[Path]) -> None:
    """Take back a run's folder that this start made (`absent` before `take`), and those above it that are empty.

    For one process alone: other ranks, and who started them, read in status.json why the run failed.
    """
    for run_dir in made[:1]:
        shutil.rmtree(run_dir, ignore_errors=True)
    for above in made[1:]:
        try:
            above.rmdir()
        except OSError:  # another run began in it
            return


def find_checkpoint(config: Config) -> CheckpointDir | None:
    """Clear away what a killed run left behind; return the checkpoint to continue from, None for a fresh start.

    Raises
    ------
    CheckpointError : there are checkpoints but none is whole, or `checkpoint.resume=never` and there are some.
    """
    run_dir = Path(config.run_dir)
    for left in retention.sweep(run_dir):
        log.warning("deleted %s, which a stopped run had left unfinished", left)
    found = layout.committed(run_dir)
    if not found:
        return None
    if config.checkpoint.resume == "never":
        raise CheckpointError(
            f"{run_dir}: has checkpoints up to step {found[0].step}; choose a new run_dir or checkpoint.resume=auto"
        )
    return newest(run_dir)


def describe(config: Config) -> None:
    """Write the resolved configuration of this start."""
    path = Path(config.run_dir) / layout.CONFIG
    save_config(config, path)


class Status:
    """status.json of a run, written by rank 0."""

    def __init__(self, run_dir: Path, writes: bool, steps: int) -> None:
        self._path = run_dir / STATUS
        self._writes = writes
        self._fixed = {"steps": steps, "pid": os.getpid(), "host": socket.gethostname(), "started": _now()}

    def write(self, state: str, step: int, **more: Any) -> None:
        """Replace the status."""
        if self._writes:
            content = {"state": state, "step": step, **self._fixed, "updated": _now(), **more}
            files.write_json(self._path, content, durable=False)


def read_status(run_dir: Path) -> dict[str, Any]:
    """Return status.json of a run, empty before the first and where a machine's end has cut it."""
    path = run_dir / STATUS
    try:
        found = json.loads(path.read_text(errors="replace")) if path.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
