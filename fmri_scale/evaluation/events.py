"""Blocks of a task: stretches of a run with one label, from BIDS events files, moved by the haemodynamic delay.

In: `*_events.tsv` (onset, duration in s, and a column of labels). Out: a `Block` for each event that is asked for, and,
for clips of known time, which block each belongs to. The BOLD response to an event peaks 4 to 6 s after it, so an event
from onset to onset + duration is looked for between onset + delay and onset + duration + delay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.entities import bare
from fmri_scale.evaluation.tables import MISSING, read_table

EVENTS_ENDING = "_events.tsv"

BIDS_KEYS = (("sub", "subject"), ("ses", "session"), ("task", "task"), ("run", "run"))
"Entities in file names, and what they are called here."


@dataclass(frozen=True)
class Block:
    """An event, as a stretch of BOLD.

    Attributes
    ----------
    subject, session, task, run
        Bare names, "" where the file's name has none.
    start_s, stop_s
        Stretch after the delay, from the run's first frame.
    """

    subject: str
    session: str
    task: str
    run: str
    start_s: float
    stop_s: float
    label: str


def read_blocks(
    folder: str | Path, column: str = "trial_type", delay_s: float = 5.0, ignore: Sequence[str] = ()
) -> list[Block]:
    """Read every events file under a folder.

    Parameters
    ----------
    folder
        BIDS folder, or a single events file.
    column
        Column with the labels.
    delay_s
        Haemodynamic delay.
    ignore
        Labels left out, such as rest.

    Raises
    ------
    DataError
        No file, a column is missing, a time is no number, or no event is left.
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() else sorted(folder.rglob(f"*{EVENTS_ENDING}"))
    if not files:
        raise DataError(f"{folder}: no file named *{EVENTS_ENDING}; task states need BIDS events")
    blocks = [block for file in files for block in _blocks_of(file, column, delay_s, {*MISSING, *ignore})]
    if not blocks:
        raise DataError(f"{folder}: {len(files)} events files hold no event with a label in {column!r}")
    return blocks


def blocks_of_clips(
    blocks: Sequence[Block],
    run: np.ndarray,
    block_run: np.ndarray,
    start_s: np.ndarray,
    duration_s: np.ndarray,
    min_overlap: float = 0.5,
) -> np.ndarray:
    """Find the block that each clip lies in.

    Parameters
    ----------
    blocks
        B blocks.
    run, block_run
        object (N,) and (B,): name of the run of each clip and of each block.
    start_s, duration_s
        float64 (N,): time of each clip.
    min_overlap
        Least share of a clip that must lie in its block.

    Returns
    -------
    int64 (N,): the block that the clip lies in most; -1 where none has enough of it.
    """
    begin, end = (np.array([getattr(block, name) for block in blocks]) for name in ("start_s", "stop_s"))
    found = np.full(len(run), -1, dtype=np.int64)
    for name in np.unique(block_run.astype(str)):
        clips, theirs = np.flatnonzero(run == name), np.flatnonzero(block_run == name)
        if not len(clips):
            continue
        stop = np.minimum((start_s + duration_s)[clips, None], end[theirs])
        share = (stop - np.maximum(start_s[clips, None], begin[theirs])) / duration_s[clips, None]
        best = share.argmax(axis=1)
        enough = share[np.arange(len(clips)), best] >= min_overlap
        found[clips[enough]] = theirs[best[enough]]
    return found


def _blocks_of(path: Path, column: str, delay_s: float, ignored: set[str]) -> list[Block]:
    frame = read_table(path)
    for needed in ("onset", "duration", column):
        if needed not in frame.columns:
            raise DataError(f"{path}: no column {needed!r}; it has {', '.join(frame.columns)}")
    parts = dict(part.split("-", 1) for part in path.name.removesuffix(EVENTS_ENDING).split("_") if "-" in part)
    if "sub" not in parts:
        raise DataError(f"{path}: the name says no subject (sub-...); rename it as BIDS does")
    names = {entity: bare(parts.pop(key, ""), entity) for key, entity in BIDS_KEYS}
    names["run"] = "_".join([names["run"], *(f"{key}-{value}" for key, value in parts.items())]).strip("_")
    blocks = []
    for row, (onset, duration, label) in enumerate(zip(frame["onset"], frame["duration"], frame[column], strict=True)):
        if label in ignored:
            continue
        try:
            start, length = float(onset), float(duration)
        except ValueError as error:
            raise DataError(f"{path}, row {row + 1}: onset {onset!r}, duration {duration!r}: no numbers") from error
        if not (np.isfinite(start) and np.isfinite(length) and length > 0):
            raise DataError(f"{path}, row {row + 1}: duration {duration} s; a block needs a duration above 0")
        blocks.append(Block(**names, start_s=start + delay_s, stop_s=start + length + delay_s, label=label))
    return blocks
