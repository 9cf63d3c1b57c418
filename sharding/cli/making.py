"""What the commands that make shards share: who works, which runs are taken, the progress bar, the last words."""

import argparse
import contextlib
import fnmatch
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from sharding.build import BuildResult, Start
from sharding.discover import RunSource
from sharding.errors import InputError
from sharding.inspect import empty_split_note
from sharding.keys import run_label

SCHEDULER_HELP = (
    "who makes the shards: local processes, or a Dask cluster that sees the same folders: dask (one of this machine), "
    "its tcp://HOST:PORT, the FILE.json of its scheduler, or slurm (through dask-jobqueue) (default: local)"
)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare who works, and on how much."""
    add = parser.add_argument
    add("--workers", type=int, metavar="N",
        help="processes, or jobs of a cluster (default: one a core, as memory allows; 0: only this one)")  # fmt: skip
    add("--scheduler", default="local", metavar="WHERE", help=SCHEDULER_HELP)
    add("--only", metavar="PATTERN",
        help="take only runs whose path or name (dataset__sub-01_task-rest) fits, such as '*task-rest*'")  # fmt: skip
    add("--limit", type=int, metavar="N", help="take only the first N runs by name, for a trial")


def chosen(sources: Sequence[RunSource], only: str | None, limit: int | None) -> list[RunSource]:
    """Runs that --only and --limit leave.

    Raises
    ------
    InputError
        None is left, or the limit makes no sense.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; expected 1 or more")
    kept = sorted(sources, key=run_label) if limit else list(sources)
    if only:
        kept = [run for run in kept if any(fnmatch.fnmatch(name, only) for name in (str(run.path), run_label(run)))]
        if not kept:
            raise InputError(f"--only {only!r} fits none of {len(sources)} runs, such as {run_label(sources[0])}")
    return kept[:limit]


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Start]:
    """A bar of frames with rate and time left, on a terminal."""
    with contextlib.ExitStack() as stack:
        yield (
            lambda num_frames: (
                stack.enter_context(
                    tqdm(total=num_frames, unit="frame", desc=title, disable=None, mininterval=0.3, smoothing=0.05)
                ).update
            )
        )


def say_result(result: BuildResult) -> int:
    path, totals, shards = result.corpus.path, result.corpus.meta["totals"], result.corpus.meta["shards"]
    print(
        f"{path}: {totals['runs']:,} runs of {totals['subjects']:,} subjects, {totals['frames']:,} frames in "
        f"{len(shards):,} shards ({result.num_made:,} made now); see: fmri-shards inspect {path}"
    )
    if note := empty_split_note(result.corpus):
        print(note)
    for reason in result.failed:
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if result.failed else 0
