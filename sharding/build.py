"""Make a corpus: plan it, have an engine make the shards that are missing, then write its tables.

In: inputs and settings. Out: a corpus folder. While a build is under way its state is in OUT/.build: every finished
shard has a record there, so a second start makes only what is missing; corpus.json is written last and marks a whole
corpus. A run that cannot be used fails alone, with its reason in runs.parquet.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow.parquet as pq

from sharding.corpus import CHECKED_FILES, Corpus, open_corpus
from sharding.discover import LeftOut, RunSource
from sharding.engine import Engine
from sharding.engine.local import InProcess
from sharding.engine.unit import Unit, begin, read_record_facts
from sharding.errors import CorpusError, InputError
from sharding.existing import Existing, read_existing
from sharding.finish import Shards, write_corpus_files
from sharding.plan import BuildSettings, Plan, PlannedShard, nothing_usable, plan_build
from sharding.shard import Progress

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"What file systems mounted without locks say, as some Lustre and NFS are."

ASIDE = "corpus.json.before"
"Where corpus.json of a corpus that is being replaced waits, in the working folder."

Start = Callable[[int], Progress]
"Called with the frames to come; returns what is told of frames done."


@dataclass(frozen=True)
class BuildResult:
    """What a build made."""

    corpus: Corpus
    failed: list[str]
    "Why runs could not be used, a line for each."
    num_left_out: int
    "Files found in folders that are no runs."
    num_made: int
    "Shards made now, not kept from before."


def build_corpus(
    sources: Sequence[RunSource],
    left_out: Sequence[LeftOut],
    out: Path,
    settings: BuildSettings,
    overwrite: bool = False,
    start: Start = lambda num_frames: lambda done: None,
    engine: Engine | None = None,
) -> BuildResult:
    """Build a corpus, or finish one that was begun.

    Parameters
    ----------
    sources, left_out
        From `discover.find_runs`.
    out
        Folder of the corpus; made if missing.
    settings
        What decides the corpus beside its inputs.
    overwrite
        Replace a corpus made of other inputs or settings. Shards that would be the same stay; runs that failed are
        tried again.
    start
        Called with the frames to come; returns what is told of frames done.
    engine
        Makes the shards; this process where None.

    Raises
    ------
    InputError
        No run can be used; then nothing is left behind.
    CorpusError
        `out` holds something else, cannot be written, or another build is at work in it.
    """
    plan = plan_build(sources, left_out, settings)
    fresh = not out.exists()
    with writing(out):
        existing = read_existing(out)
        repairs = existing is not None and existing.is_of(plan) and not overwrite
        if existing and repairs and not existing.missing():
            return result(out, 0)
        _check_free(out, plan, existing, overwrite)
        with working_folder(out) as work:
            kept, plans = None, [plan.digest]
            if existing and repairs:
                kept, plans = existing.appended_to(plan), existing.meta["plans"]
            for shard in plan.shards:
                if existing and existing.has(shard):
                    existing.write_record(shard, work)
            if not repairs:  # else a repair that is broken off would no longer know what was appended
                _set_aside(out, work)
            shards = make_shards(plan, settings, out, work, kept, engine or InProcess(), start)
            if shards.num_samples:
                write_corpus_files(out, plans, settings, shards)
                sweep_shards(out, shards)
            elif not repairs:
                _take_back(out, work)
            shutil.rmtree(work)
    if not shards.num_samples:
        if not (out / "corpus.json").is_file():
            _remove_empty(out, fresh)
        raise InputError(nothing_usable(shards.reasons()))
    return result(out, shards.num_made)


def make_shards(
    plan: Plan,
    settings: BuildSettings,
    out: Path,
    work: Path,
    kept: Existing | None,
    engine: Engine,
    start: Start,
) -> Shards:
    """Make the shards of a plan that are missing.

    Parameters
    ----------
    plan, settings, out
        Of the build.
    work
        The locked `working_folder`.
    kept
        A corpus that stands there and stays, of shards that are not in the plan.
    engine, start
        As of `build_corpus`.
    """
    progress = start(plan.num_frames)
    this = begin(work)
    units = []
    for shard in plan.shards:
        if _is_finished(shard, out, work):
            progress(shard.num_frames)
        else:
            units.append(Unit(shard, settings, out.resolve(), this))
    engine.run(units, progress)
    records = [work / f"{shard.name}.json" for shard in plan.shards]
    return Shards(kept, records, plan.rejected, plan.left_out, len(units))


def sweep_shards(out: Path, shards: Shards) -> None:
    """Remove the shards of an earlier corpus or attempt that are none of this corpus."""
    wanted = {fact["name"] for fact in shards.facts}
    for stale in (out / "shards").glob("*.tar"):
        if stale.name not in wanted:
            stale.unlink()


def _set_aside(out: Path, work: Path) -> None:
    """Take corpus.json from a corpus that is about to be replaced; it comes back where nothing replaces it."""
    if (out / "corpus.json").is_file():
        os.replace(out / "corpus.json", work / ASIDE)


def _take_back(out: Path, work: Path) -> None:
    """Put a corpus back that nothing replaced; without a whole one, remove the shards of attempts before."""
    if (work / ASIDE).is_file():
        os.replace(work / ASIDE, out / "corpus.json")
        before = read_existing(out)
        if before and not before.missing():
            return
        (out / "corpus.json").unlink()
    for shard in (out / "shards").glob("*.tar"):
        shard.unlink()


@contextlib.contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """OUT/.build, locked against a second build, without the leavings of a killed one."""
    work = out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    (out / "shards").mkdir(exist_ok=True)
    with (work / "lock").open("w") as lock:
        _lock(lock, out)
        _sweep(out, work)
        try:
            yield work
        finally:
            (work / "start").unlink(missing_ok=True)  # what a worker far away still makes is nobody's any more
            _sweep(out, work)
            # A whole corpus to which nothing was added is left as it was.
            if (out / "corpus.json").is_file() and [file.name for file in work.glob("*")] == ["lock"]:
                shutil.rmtree(work)


def _lock(lock: IO[str], out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CorpusError(f"{out}: another build is at work in it; wait for it or choose another --out") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        # What is left of the protection: workers of an earlier start make nothing more once another has begun.
        warnings.warn(f"{out}: its file system has no locks; start no other build in it meanwhile", stacklevel=2)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a disk that cannot be written into one line; reading faults are `InputError`s long before they come here."""
    try:
        yield
    except OSError as error:
        raise CorpusError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from error


def result(out: Path, made: int) -> BuildResult:
    """Say what stands in `out` after a build that made some shards."""
    runs = pq.read_table(out / "runs.parquet", columns=["status", "reason"])
    status = runs["status"].to_numpy()
    return BuildResult(
        open_corpus(out), list(runs["reason"].to_numpy()[status == "failed"]), int((status == "skipped").sum()), made
    )


def _sweep(out: Path, work: Path) -> None:
    for leaving in [*work.glob("*.tmp-*"), *out.glob(".*.tmp-*")]:
        leaving.unlink(missing_ok=True)


def _check_free(out: Path, plan: Plan, existing: Existing | None, overwrite: bool) -> None:
    """Refuse to write over something that is not a begun build of this plan."""
    if not out.exists():
        return
    if not out.is_dir():
        raise CorpusError(f"{out}: is a file; give a folder as --out")
    whole, work = (out / "corpus.json").is_file(), out / ".build"
    if not whole and not work.is_dir() and any(out.iterdir()):
        raise CorpusError(f"{out}: is not empty and holds no corpus; choose another --out")
    if overwrite or (existing and existing.is_of(plan)):
        return
    if whole:
        raise CorpusError(f"{out}: holds a corpus of other inputs or settings; choose another --out or --overwrite")
    begun = {read_record_facts(file)["digest"] for file in work.glob("*.tar.json")}
    if begun - {shard.digest for shard in plan.shards}:
        raise CorpusError(f"{out}: was begun with other inputs or settings; choose another --out or --overwrite")


def _is_finished(shard: PlannedShard, out: Path, work: Path) -> bool:
    """Whether an earlier start made this shard of the same runs and settings."""
    file, path = work / f"{shard.name}.json", out / "shards" / shard.name
    if not file.is_file():
        return False
    record = read_record_facts(file)
    there = path.stat().st_size if path.is_file() else None
    return bool(record["digest"] == shard.digest and record["bytes"] == there)


def _remove_empty(out: Path, fresh: bool) -> None:
    """Take away the folders of a build that made nothing, and the tables of a corpus that is no more."""
    for name in CHECKED_FILES:
        (out / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where somebody put other things into them
        (out / "shards").rmdir()
        if fresh:
            out.rmdir()
