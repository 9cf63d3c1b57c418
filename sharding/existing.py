"""A corpus that stands already, seen by a build that goes on with it: which of its shards stay, and their rows.

In: a corpus folder. Out: an `Existing`. Its tables are cut to the shards that corpus.json names, so that tables
written by an append that did not come to its end are no hindrance.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding.discover.source import writable
from sharding.engine.unit import write_record
from sharding.errors import CorpusError
from sharding.format import INDEX_SCHEMA, RUNS_SCHEMA, SCHEMA_VERSION
from sharding.index import Row
from sharding.plan import Plan, PlannedShard


@dataclass(frozen=True)
class Existing:
    """Shards that stand, as corpus.json and the tables tell."""

    path: Path
    meta: dict[str, Any]
    shards: list[Row]
    "Entries of corpus.json."
    index: pa.Table
    "Rows of index.parquet."
    runs: pa.Table
    "Rows of runs.parquet: of these shards, and of runs that are in no shard."

    def is_of(self, plan: Plan) -> bool:
        """Whether this corpus was made by this plan, or by it and appends after it."""
        return plan.digest in self.meta.get("plans", [])

    def missing(self) -> list[str]:
        """Shards that are not there in their size."""
        return [shard["name"] for shard in self.shards if self._size(shard["name"]) != shard["bytes"]]

    def has(self, planned: PlannedShard) -> bool:
        """Whether a planned shard stands here, made of the same runs and settings, all of which could be used."""
        for shard in self.shards:
            if shard["name"] == planned.name:
                usable = pc.sum(pc.equal(self.runs["shard"], planned.name)).as_py() or 0
                same = shard.get("digest") == planned.digest and usable == len(planned.runs)
                return same and self._size(planned.name) == shard["bytes"]
        return False

    def write_record(self, planned: PlannedShard, work: Path) -> None:
        """Write the record of a shard that stands, as if a build under way had just made it."""
        facts = next(shard for shard in self.shards if shard["name"] == planned.name)
        rows = {"index": self.index, "runs": self.runs}
        tables = {name: table.filter(pc.equal(table["shard"], planned.name)) for name, table in rows.items()}
        write_record(work, {**facts, **{name: table.to_pylist() for name, table in tables.items()}})

    def appended_to(self, plan: Plan) -> "Existing | None":
        """Return what appends have added to the corpus of this plan; None where there were none.

        Raises
        ------
        CorpusError
            A shard of it is missing or short: to make it again takes what was appended then.
        """
        own = {shard.name for shard in plan.shards}
        shards = [shard for shard in self.shards if shard["name"] not in own]
        if not shards:
            return None
        if lost := [shard["name"] for shard in shards if self._size(shard["name"]) != shard["bytes"]]:
            raise CorpusError(
                f"{self.path}: {lost[0]} is missing or short and came with an append, which a build does not make "
                "again; restore it, or build with --overwrite and append once more"
            )
        names = {shard["name"] for shard in shards}
        asked = {writable(run.source.alias or run.source.path) for shard in plan.shards for run in shard.runs}
        asked |= {writable(item.source.alias or item.source.path) for item in plan.rejected}
        asked |= {writable(item.path) for item in plan.left_out}
        named = _in(self.runs["source"], asked)
        theirs = pc.if_else(pc.is_null(self.runs["shard"]), pc.invert(named), _in(self.runs["shard"], names))
        return replace(self, shards=shards, index=_of_shards(self.index, names), runs=self.runs.filter(theirs))

    def without(self, files: Collection[str]) -> "Existing":
        """Return this corpus without what it says about files (as runs.parquet names them) that made no run of it."""
        tried = _in(self.runs["source"], files)
        again = pc.and_(tried, pc.not_equal(self.runs["status"], "ok"))
        return replace(self, runs=self.runs.filter(pc.invert(again)))

    def _size(self, name: str) -> int | None:
        file = self.path / "shards" / name
        return file.stat().st_size if file.is_file() else None


def read_existing(out: Path) -> Existing | None:
    """Return the corpus in a folder, whole shards or not; None where there is none or it cannot be read."""
    try:
        meta = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
        if meta["schema_version"] != SCHEMA_VERSION:
            return None
        index, runs = pq.read_table(out / "index.parquet"), pq.read_table(out / "runs.parquet")
        names = {shard["name"] for shard in meta["shards"]}
        index = _of_shards(index.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA), names)
        runs = _cut_runs(_with_all_columns(runs), names)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, pa.ArrowException):
        return None
    return Existing(out, meta, meta["shards"], index, runs)


def require_existing(out: Path) -> Existing:
    """Return the corpus in a folder.

    Raises
    ------
    CorpusError
        There is none that can be read, or a shard is missing or short.
    """
    existing = read_existing(out)
    if existing is None:
        raise CorpusError(f"{out}: holds no whole corpus; make one with: fmri-shards build INPUT... --out {out}")
    if missing := existing.missing():
        raise CorpusError(f"{out}: {len(missing)} shards are missing or short, {missing[0]} first; restore them")
    return existing


def _of_shards(table: pa.Table, names: Collection[str]) -> pa.Table:
    return table.filter(_in(table["shard"], names))


def _in(column: pa.ChunkedArray, names: Collection[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(sorted(names), pa.string()))


def _with_all_columns(runs: pa.Table) -> pa.Table:
    """Rows of runs.parquet as this version writes them: what an earlier one did not measure is null."""
    for item in RUNS_SCHEMA:
        if item.name not in runs.column_names:
            runs = runs.append_column(item, pa.nulls(len(runs), item.type))
    return runs.select(RUNS_SCHEMA.names).cast(RUNS_SCHEMA)


def _cut_runs(runs: pa.Table, names: Collection[str]) -> pa.Table:
    shards = runs["shard"].to_numpy(zero_copy_only=False)
    keep = np.array([name is None or name in names for name in shards], dtype=bool)
    return runs.filter(pa.array(keep))
