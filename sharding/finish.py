"""Finish a corpus: from its shards' rows to mask, tables and corpus.json, which is written last.

In: `Shards`, those that stood before and the records of new ones. Out: the files of the corpus beside its shards. The
same shards give the same tables, whoever made them and in whatever order.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sharding.corpus import CHECKED_FILES, seal
from sharding.discover import LeftOut
from sharding.discover.source import writable
from sharding.engine.unit import read_record
from sharding.existing import Existing
from sharding.format import GRID_AFFINE, INDEX_SCHEMA, RUNS_SCHEMA, SCHEMA_VERSION
from sharding.index import Row, corpus_id, index_table, runs_table, table_bytes
from sharding.mask import brain_mask, mask_sha256
from sharding.mask_image import mask_bytes
from sharding.plan import BuildSettings, Rejected
from sharding.shard import run_facts
from sharding.write import write_whole

SOFTWARE = ("fmri-scale", "numpy", "scipy", "nibabel", "nilearn", "pyarrow")


@dataclass
class Shards:
    """Everything a corpus is made of."""

    kept: Existing | None
    "What stood before and stays."
    records: Sequence[Path]
    "Of the shards made."
    rejected: Sequence[Rejected]
    left_out: Sequence[LeftOut]
    num_made: int
    "Shards made by this start."
    facts: list[Row] = field(init=False)
    "A row per shard, by name, for corpus.json."
    index: pa.Table = field(init=False)
    runs: pa.Table = field(init=False)

    def __post_init__(self) -> None:
        facts = list(self.kept.shards) if self.kept else []
        index = [self.kept.index] if self.kept else []
        runs = [self.kept.runs] if self.kept else []
        for record in self._read():
            if record["index"]:
                frames = sum(row["n_frames"] for row in record["index"])
                named = {name: record[name] for name in ("name", "bytes", "sha256", "digest")}
                facts.append({**named, "samples": len(record["index"]), "frames": frames})
            index.append(pa.Table.from_pylist(record["index"], schema=INDEX_SCHEMA))
            runs.append(pa.Table.from_pylist(record["runs"], schema=RUNS_SCHEMA))
        never = [run_facts(item.source, item.status, item.reason) for item in self.rejected]
        never += [
            {
                "source": writable(item.path),
                "status": "failed" if item.failed else "skipped",
                "reason": writable(item.reason),
            }
            for item in self.left_out
        ]
        runs.append(pa.Table.from_pylist(never, schema=RUNS_SCHEMA))
        self.facts = sorted(facts, key=lambda fact: fact["name"])
        self.index = index_table(pa.concat_tables([INDEX_SCHEMA.empty_table(), *index]))
        self.runs = runs_table(pa.concat_tables(runs))

    @property
    def num_samples(self) -> int:
        """Samples of the corpus."""
        return self.index.num_rows

    def reasons(self) -> list[str]:
        """Why runs failed."""
        return self.runs.filter(pc.equal(self.runs["status"], "failed"))["reason"].to_pylist()

    def _read(self) -> Iterator[Row]:
        for path in self.records:
            yield read_record(path)


def write_corpus_files(out: Path, plans: list[str], settings: BuildSettings, shards: Shards) -> None:
    """Write mask.nii.gz, index.parquet, runs.parquet and, last, corpus.json.

    Parameters
    ----------
    out
        The corpus folder.
    plans
        Digests of the build's plan and of those of appends.
    settings
        Of the build.
    shards
        All of them.
    """
    files = {
        "mask.nii.gz": mask_bytes(brain_mask()),
        "runs.parquet": table_bytes(shards.runs),
        "index.parquet": table_bytes(shards.index),
    }
    write_sealed(out, files, _corpus_facts(plans, settings, shards))


def write_sealed(out: Path, files: dict[str, bytes], facts: Row) -> None:
    """Write the files beside the shards, then corpus.json with the facts and checksums of the files and of itself."""
    assert tuple(files) == CHECKED_FILES
    for name, data in files.items():
        write_whole(out / name, data)
    checks = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    write_whole(out / "corpus.json", seal(json.dumps({**facts, "files": checks}, indent=1)))


def _corpus_facts(plans: list[str], settings: BuildSettings, shards: Shards) -> Row:
    mask = brain_mask()
    people = shards.index.group_by(["dataset", "subject"]).aggregate([])
    status = shards.runs["status"]
    return {
        "schema_version": SCHEMA_VERSION,
        "corpus_id": corpus_id(shards.index, mask_sha256(mask)),
        "grid": {"shape": list(mask.shape), "affine": GRID_AFFINE.tolist()},
        "mask": {"voxels": int(mask.sum()), "sha256": mask_sha256(mask)},
        "tr": settings.preprocessing.target_tr,
        "totals": {
            "runs": pc.sum(pc.equal(status, "ok")).as_py() or 0,
            "failed": pc.sum(pc.equal(status, "failed")).as_py() or 0,
            "subjects": people.num_rows,
            "samples": shards.index.num_rows,
            "frames": sum(fact["frames"] for fact in shards.facts),
            "bytes": sum(fact["bytes"] for fact in shards.facts),
        },
        "shards": shards.facts,
        "plans": plans,
        "settings": settings.to_json(),
        "software": {"python": platform.python_version(), **{name: version(name) for name in SOFTWARE}},
        "licence_note": settings.licence_note,
    }
