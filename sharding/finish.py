"""Finish a corpus: from the records of its shards to mask, tables and corpus.json, which is written last.

In: a plan and a record for each of its shards. Out: the files of the corpus beside its shards. The same records give
the same bytes.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from sharding.format import GRID_AFFINE, SCHEMA_VERSION
from sharding.index import Row, corpus_id, index_table, runs_table, write_table
from sharding.mask import brain_mask, mask_sha256
from sharding.mask_image import mask_bytes
from sharding.plan import BuildSettings, Plan
from sharding.shard import run_facts
from sharding.write import write_whole

SOFTWARE = ("fmri-scale", "numpy", "scipy", "nibabel", "nilearn", "webdataset", "pyarrow")


def write_corpus_files(out: Path, plan: Plan, settings: BuildSettings, records: list[Row]) -> None:
    """Write mask.nii.gz, index.parquet, runs.parquet and, last, corpus.json.

    Parameters
    ----------
    out
        The corpus folder.
    plan, settings
        Of the build.
    records
        Of all shards of the plan, as from `make_shard`.
    """
    index = index_table([row for record in records for row in record["index"]])
    runs = [row for record in records for row in record["runs"]]
    runs += [run_facts(item.source, item.status, item.reason) for item in plan.rejected]
    runs += [{"source": str(item.path), "status": "skipped", "reason": item.reason} for item in plan.left_out]
    write_whole(out / "mask.nii.gz", mask_bytes(brain_mask()))
    write_table(out / "index.parquet", index)
    write_table(out / "runs.parquet", runs_table(runs))
    facts = _corpus_facts(plan, settings, index, runs, records)
    write_whole(out / "corpus.json", json.dumps(facts, indent=1).encode())


def _corpus_facts(plan: Plan, settings: BuildSettings, index: pa.Table, runs: list[Row], records: list[Row]) -> Row:
    mask = brain_mask()
    shards = [_shard_facts(record) for record in records if record["index"]]
    subjects = set(zip(*(index.column(name).to_pylist() for name in ("dataset", "subject")), strict=True))
    return {
        "schema_version": SCHEMA_VERSION,
        "corpus_id": corpus_id(index, mask_sha256(mask)),
        "grid": {"shape": list(mask.shape), "affine": GRID_AFFINE.tolist()},
        "mask": {"voxels": int(mask.sum()), "sha256": mask_sha256(mask)},
        "tr": settings.preprocessing.target_tr,
        "totals": {
            "runs": sum(row["status"] == "ok" for row in runs),
            "failed": sum(row["status"] == "failed" for row in runs),
            "subjects": len(subjects),
            "samples": index.num_rows,
            "frames": sum(shard["frames"] for shard in shards),
            "bytes": sum(shard["bytes"] for shard in shards),
        },
        "shards": shards,
        "plan_sha256": plan.digest,
        "settings": settings.to_json(),
        "software": {"python": platform.python_version(), **{name: version(name) for name in SOFTWARE}},
        "licence_note": settings.licence_note,
    }


def _shard_facts(record: Row) -> Row:
    frames = sum(row["n_frames"] for row in record["index"])
    return {**{k: record[k] for k in ("name", "bytes", "sha256")}, "samples": len(record["index"]), "frames": frames}
