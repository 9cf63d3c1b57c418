"""A unit of work: one shard and its record, made in whatever process on whatever machine sees the same folders.

In: a `Unit`. Out: OUT/shards/NAME and OUT/.build/NAME.json, each appearing only when whole. The record is written by
whoever made the shard, so that the death of everybody else loses nothing.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sharding.errors import CorpusError
from sharding.index import Row
from sharding.keys import run_label
from sharding.plan import BuildSettings, PlannedShard
from sharding.shard import Progress, make_shard
from sharding.write import write_whole


@dataclass(frozen=True)
class Unit:
    """One shard to be made."""

    shard: PlannedShard
    settings: BuildSettings
    out: Path
    "Folder of the corpus."
    start: str
    "The start of a build that wants it, see `begin`; a worker left over from another start makes nothing."
    refused: dict[str, str] = field(default_factory=dict)
    "Runs to leave out: label to reason."

    @property
    def name(self) -> str:
        """File name of the shard."""
        return self.shard.name

    @property
    def work(self) -> Path:
        """Folder of unfinished things."""
        return self.out / ".build"

    def without(self, label: str, reason: str) -> "Unit":
        """Return the unit without one of its runs."""
        return replace(self, refused={**self.refused, label: reason})

    def source(self, label: str) -> Path:
        """File of one of its runs."""
        return next(run.source.path for run in self.shard.runs if run_label(run.source) == label)


def begin(work: Path) -> str:
    """Mark a new start in the folder of unfinished things; return its name."""
    start = secrets.token_hex(8)
    write_whole(work / "start", start.encode())
    return start


def make_unit(unit: Unit, progress: Progress, at: Callable[[str], object] = lambda label: None) -> None:
    """Make the shard of a unit, then its record.

    Raises
    ------
    CorpusError
        Another start of the build, or none, is at work in the folder.
    OSError
        The shard cannot be written.
    """

    def before(label: str) -> None:
        _check_wanted(unit)
        at(label)

    path = unit.out / "shards" / unit.name
    write_record(unit.work, make_shard(unit.shard, unit.settings, path, unit.work, progress, before, unit.refused))


def write_record(work: Path, record: Row) -> None:
    """Write the record of a shard: a line of its facts, then one of its rows."""
    rows = {name: record[name] for name in ("index", "runs")}
    facts = {name: value for name, value in record.items() if name not in rows}
    write_whole(work / f"{record['name']}.json", f"{json.dumps(facts)}\n{json.dumps(rows)}\n".encode())


def read_record_facts(path: Path) -> Row:
    """Name, digest, bytes and sha256 of a record, without its rows."""
    with path.open(encoding="utf-8") as file:
        return json.loads(file.readline())


def read_record(path: Path) -> Row:
    """Return a whole record."""
    with path.open(encoding="utf-8") as file:
        return {**json.loads(file.readline()), **json.loads(file.readline())}


def _check_wanted(unit: Unit) -> None:
    try:
        start = (unit.work / "start").read_text()
    except FileNotFoundError:
        start = "none"
    if start != unit.start:
        raise CorpusError(f"{unit.out}: its build was stopped or started again; {unit.name} is left to that start")
