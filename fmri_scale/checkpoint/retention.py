"""Which checkpoints stay: the newest K, and every one whose step is a multiple of N.

Deletion renames first, so that a kill in the middle leaves a folder that no one takes for a checkpoint.
"""

import os
import shutil
from pathlib import Path

from fmri_scale.checkpoint import layout


def superseded(steps: list[int], keep_last: int, keep_every: int) -> list[int]:
    """Return the steps whose checkpoints may go.

    Parameters
    ----------
    keep_last : number of newest checkpoints that stay, at least 1.
    keep_every : steps whose multiples stay for ever; 0 keeps none.
    """
    old = sorted(steps)[:-keep_last]
    return [step for step in old if not (keep_every and step % keep_every == 0)]


def prune(run_dir: Path, keep_last: int, keep_every: int) -> list[int]:
    """Delete superseded checkpoints of a run; return their steps."""
    steps = [c.step for c in layout.committed(run_dir)]
    going = superseded(steps, keep_last, keep_every)
    for step in going:
        discard(layout.step_dir(run_dir, step))
    return going


def discard(folder: Path) -> None:
    """Delete a checkpoint's folder so that no moment shows a part of it under its name."""
    aside = folder.with_name(f"{folder.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(folder, aside)
    shutil.rmtree(aside)


def sweep(run_dir: Path) -> list[Path]:
    """Delete what a killed run left half written or half deleted; return the folders that were there."""
    found = layout.leftovers(run_dir)
    for folder in found:
        shutil.rmtree(folder)
    return found
