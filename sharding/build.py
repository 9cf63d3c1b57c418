"""Make a corpus: plan it, make its shards one after another, then its tables.

In: inputs and settings. Out: a corpus folder. While a build is under way its state is in OUT/.build: every finished
shard has a record there, so a second start makes only what is missing; corpus.json is written last and marks a whole
corpus. A run that cannot be used fails alone, with its reason in runs.parquet.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from sharding.corpus import Corpus, open_corpus
from sharding.discover import LeftOut, RunSource
from sharding.errors import CorpusError, InputError
from sharding.finish import write_corpus_files
from sharding.index import Row
from sharding.plan import BuildSettings, Plan, PlannedShard, nothing_usable, plan_build
from sharding.shard import Progress, make_shard
from sharding.write import write_whole


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
    start: Callable[[int], Progress] = lambda num_frames: lambda done: None,
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
        Replace a corpus made of other inputs or settings.
    start
        Called with the frames to come; returns what is told of frames done.

    Raises
    ------
    InputError
        No run can be used; then nothing is left behind.
    CorpusError
        `out` holds something else, cannot be written, or another build is at work in it.
    """
    plan = plan_build(sources, left_out, settings)
    fresh = not out.exists()
    try:
        if _is_whole(out, plan):
            return _result(out, 0)
        _check_free(out, plan, overwrite)
        with _working_folder(out) as work:
            records, made = _make_shards(plan, settings, out, work, start(plan.num_frames))
            if any(record["index"] for record in records):
                write_corpus_files(out, plan, settings, records)
            shutil.rmtree(work)
    except OSError as error:  # reading faults are InputErrors long before they come here
        raise CorpusError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from error
    if not (out / "corpus.json").is_file():
        _remove_empty(out, fresh)
        raise InputError(nothing_usable(_reasons(plan, records)))
    return _result(out, made)


def _is_whole(out: Path, plan: Plan) -> bool:
    """Whether `out` holds this very corpus."""
    try:
        return json.loads((out / "corpus.json").read_text())["plan_sha256"] == plan.digest
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False


def _check_free(out: Path, plan: Plan, overwrite: bool) -> None:
    """Refuse to write over something that is not a begun build of this plan."""
    if not out.exists():
        return
    if not out.is_dir():
        raise CorpusError(f"{out}: is a file; give a folder as --out")
    whole, work = (out / "corpus.json").is_file(), out / ".build"
    if not whole and not work.is_dir() and any(out.iterdir()):
        raise CorpusError(f"{out}: is not empty and holds no corpus; choose another --out")
    if overwrite:
        return
    if whole:
        raise CorpusError(f"{out}: holds a corpus of other inputs or settings; choose another --out or --overwrite")
    records = [json.loads(file.read_text())["digest"] for file in work.glob("*.tar.json")]
    if set(records) - {shard.digest for shard in plan.shards}:
        raise CorpusError(f"{out}: was begun with other inputs or settings; choose another --out or --overwrite")


def _remove_empty(out: Path, fresh: bool) -> None:
    """Take away the folders of a build that made nothing."""
    (out / "shards").rmdir()
    if fresh:
        out.rmdir()


@contextlib.contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """OUT/.build, locked against a second build, without the leavings of a killed one."""
    work = out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    (out / "shards").mkdir(exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CorpusError(f"{out}: another build is at work in it; wait for it or choose another --out") from error
        for leaving in work.glob("*.tmp-*"):
            leaving.unlink()
        yield work


def _make_shards(
    plan: Plan, settings: BuildSettings, out: Path, work: Path, progress: Progress
) -> tuple[list[Row], int]:
    """Make the shards that are missing; return the records of all, and how many were made."""
    (out / "corpus.json").unlink(missing_ok=True)
    wanted = {shard.name for shard in plan.shards}
    for stale in (out / "shards").iterdir():
        if stale.name not in wanted:
            stale.unlink()
    records, made = [], 0
    for shard in plan.shards:
        record = _finished(shard, out, work)
        if record is None:
            record = make_shard(shard, settings, out / "shards" / shard.name, work, progress)
            write_whole(work / f"{shard.name}.json", json.dumps(record).encode())
            made += 1
        else:
            progress(sum(run.num_frames for run in shard.runs))
        records.append(record)
    return records, made


def _finished(shard: PlannedShard, out: Path, work: Path) -> Row | None:
    """Record of a shard that an earlier start made of the same runs and settings; None if it must be made."""
    file, path = work / f"{shard.name}.json", out / "shards" / shard.name
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    there = path.stat().st_size if path.is_file() else None
    return record if record["digest"] == shard.digest and record["bytes"] == there else None


def _reasons(plan: Plan, records: list[Row]) -> list[str]:
    reasons = [item.reason for item in plan.rejected if item.status == "failed"]
    return reasons + [row["reason"] for record in records for row in record["runs"] if row["status"] == "failed"]


def _result(out: Path, made: int) -> BuildResult:
    runs = pq.read_table(out / "runs.parquet", columns=["status", "reason"]).to_pylist()
    failed = [row["reason"] for row in runs if row["status"] == "failed"]
    return BuildResult(open_corpus(out), failed, sum(row["status"] == "skipped" for row in runs), made)
