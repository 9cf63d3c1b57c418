"""Make a corpus: plan it, make its shards one after another, then its tables.

In: inputs and settings. Out: a corpus folder. While a build is under way its state is in OUT/.build: finished shards
have a record there, so a second start makes only what is missing; corpus.json is written last and marks a whole
corpus. A run that cannot be used fails alone, with its reason in runs.parquet.
"""

import contextlib
import fcntl
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import nilearn
import numpy as np
import webdataset

from sharding.corpus import Corpus, open_corpus
from sharding.discover import LeftOut, RunSource
from sharding.errors import CorpusError, InputError
from sharding.format import GRID_AFFINE, SCHEMA_VERSION
from sharding.index import Row, corpus_id, index_table, place_columns, runs_table, write_table
from sharding.mask import brain_mask, mask_sha256
from sharding.plan import BuildSettings, Plan, PlannedRun, PlannedShard, plan_build
from sharding.prepare import PreparedRun, prepare_run
from sharding.sample import samples_of
from sharding.write import ShardFile, member_places, write_whole

Progress = Callable[[str, int], None]
"Called with an event (planned: frames to come; frames: done; failed: 1) and a number."


@dataclass(frozen=True)
class BuildResult:
    """What a build made."""

    corpus: Corpus
    failed: list[tuple[Path, str]]
    "Runs that could not be used, and why."
    left_out: list[LeftOut]
    made: int
    "Shards made now."
    kept: int
    "Shards that were there already."


def build_corpus(
    sources: Sequence[RunSource],
    left_out: Sequence[LeftOut],
    out: Path,
    settings: BuildSettings,
    overwrite: bool = False,
    progress: Progress = lambda event, number: None,
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
    progress
        Told how far it is.

    Raises
    ------
    InputError
        No run can be used; then nothing is left behind.
    CorpusError
        `out` holds something else, or another build is at work in it.
    """
    mask = brain_mask()
    plan = plan_build(sources, left_out, settings, int(mask.sum()), mask_sha256(mask))
    progress("planned", plan.num_frames)
    if not plan.shards:
        raise InputError(_all_failed([(item.source.path, item.reason) for item in plan.rejected]))
    fresh = not out.exists()
    state = _existing(out, plan, overwrite)
    if state == "whole":
        return _result(open_corpus(out), plan, [], 0)
    try:
        with _working_folder(out) as work:
            records = [_shard(shard, settings, out, work, progress) for shard in plan.shards]
            rows = [row for record in records for row in record["index"]]
            if not rows:
                raise InputError(_all_failed(_failures(records, plan)))
            _write_tables(out, plan, settings, records, mask)
            shutil.rmtree(work)
    except InputError:
        if fresh:
            shutil.rmtree(out, ignore_errors=True)
        raise
    return _result(open_corpus(out), plan, records, sum(record["new"] for record in records))


def _existing(out: Path, plan: Plan, overwrite: bool) -> str:
    """Look at what `out` holds: "none", "begun", or "whole" where this very corpus is there."""
    work = out / ".build"
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{out}: is a file; give a folder as --out")
    if (out / "corpus.json").is_file():
        if json.loads((out / "corpus.json").read_text())["plan_sha256"] == plan.digest:
            return "whole"
        if not overwrite:
            raise CorpusError(f"{out}: holds a corpus of other inputs or settings; choose another --out or --overwrite")
        (out / "corpus.json").unlink()
    elif work.is_dir():
        begun = work / "plan.json"
        if begun.is_file() and json.loads(begun.read_text())["plan_sha256"] != plan.digest and not overwrite:
            raise CorpusError(f"{out}: was begun with other inputs or settings; choose another --out or --overwrite")
    elif out.is_dir() and any(out.iterdir()):
        raise CorpusError(f"{out}: is not empty and holds no corpus; choose another --out")
    for folder in (out / "shards", work):
        folder.mkdir(parents=True, exist_ok=True)
    wanted = {shard.name for shard in plan.shards}
    for stale in (out / "shards").iterdir():
        if stale.name not in wanted:
            stale.unlink()
    write_whole(work / "plan.json", json.dumps({"plan_sha256": plan.digest}).encode())
    return "begun"


@contextlib.contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """OUT/.build, locked against a second build, without the leavings of a killed one."""
    work = out / ".build"
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CorpusError(f"{out}: another build is at work in it; wait for it or choose another --out") from error
        for leaving in work.glob("*.tmp-*"):
            leaving.unlink()
        yield work


def _shard(shard: PlannedShard, settings: BuildSettings, out: Path, work: Path, progress: Progress) -> dict[str, Any]:
    """Make a shard, or take it as it is where its record says so; return the record."""
    record_file = work / f"{shard.name}.json"
    path = out / "shards" / shard.name
    if record_file.is_file():
        record = json.loads(record_file.read_text())
        there = path.stat().st_size if path.is_file() else None
        if record["digest"] == shard.digest and there == record["bytes"]:
            progress("frames", sum(run.num_frames for run in shard.runs))
            return {**record, "new": False}
    record = make_shard(shard, settings, path, work, progress)
    write_whole(record_file, json.dumps(record).encode())
    return {**record, "new": True}


def make_shard(
    shard: PlannedShard,
    settings: BuildSettings,
    path: Path,
    work: Path,
    progress: Progress = lambda event, number: None,
) -> dict[str, Any]:
    """Make one shard: its bytes depend on its runs and the settings alone.

    Returns
    -------
    The shard's record: name, digest, bytes (None where no run of it could be used), sha256, index rows, run rows.
    """
    index: list[Row] = []
    runs: list[Row] = []
    size, sha256 = None, None
    with ShardFile(path, work) as file:
        for planned in shard.runs:
            try:
                rows, run_row = _add_run(file, planned, settings, work, progress)
            except InputError as error:
                progress("failed", planned.num_frames)
                runs.append(_run_row(planned.source, "failed", str(error), planned))
                continue
            index += rows
            runs.append({**run_row, "shard": shard.name})
        if index:
            size, sha256 = file.finish()
    if index:
        places = member_places(path)
        index = [{**row, "shard": shard.name, **place_columns(row["key"], places)} for row in index]
    else:
        path.unlink(missing_ok=True)
    return {"name": shard.name, "digest": shard.digest, "bytes": size, "sha256": sha256, "index": index, "runs": runs}


def _add_run(
    file: ShardFile, planned: PlannedRun, settings: BuildSettings, work: Path, progress: Progress
) -> tuple[list[Row], Row]:
    source = planned.source
    run = prepare_run(
        source.path,
        settings.preprocessing,
        tr=source.tr,
        mask_path=source.mask,
        assume_mni=settings.assume_mni,
        scratch=work,
    )
    rows = []
    with contextlib.closing(run):
        for sample in samples_of(run, source, planned.split):
            file.add(sample.key, sample.members)
            rows.append(sample.facts)
            progress("frames", sample.facts["n_frames"])
        return rows, _ok_row(planned, run)


def _run_row(source: RunSource, status: str, reason: str, planned: PlannedRun | None = None) -> Row:
    names = ("dataset", "subject", "session", "run", "task", "variant", "family")
    row: Row = {"source": str(source.path), "status": status, "reason": reason}
    row |= {name: getattr(source, name) for name in names}
    if planned:
        info = planned.info
        row |= {
            "split": planned.split,
            "source_bytes": info.size,
            "source_mtime_ns": info.mtime_ns,
            "source_shape": " x ".join(map(str, info.shape)),
            "source_voxel_mm": " x ".join(f"{size:.4g}" for size in info.voxel_mm),
            "source_dtype": str(info.dtype),
            "source_frames": info.num_frames,
        }
    return row


def _ok_row(planned: PlannedRun, run: PreparedRun) -> Row:
    moments = run.moments
    names = ("tsnr_median", "dvars_median", "negative_fraction", "constant_fraction", "zero_frames")
    return {
        **_run_row(planned.source, "ok", "", planned),
        "source_orientation": run.affine_codes,
        "source_tr": run.source_tr,
        "tr_from": run.tr_from,
        "space": run.space,
        "geometry": "exact" if run.exact else "resampled",
        "frames": run.num_frames,
        "tr": run.tr,
        "mean": run.mean,
        "sd": run.sd,
        "background": run.background,
        "brain_covered": run.overlap.brain_covered,
        "head_in_mask": run.overlap.head_in_mask,
        "outside_fov": run.outside_fov,
        "clipped_fraction": run.clipped / (run.num_frames * run.store.num_voxels),
        "nonfinite_values": run.nonfinite,
        **{name: getattr(moments, name) for name in names},
    }


def _write_tables(
    out: Path, plan: Plan, settings: BuildSettings, records: list[dict[str, Any]], mask: np.ndarray
) -> None:
    index = index_table([row for record in records for row in record["index"]])
    runs = [row for record in records for row in record["runs"]]
    runs += [_run_row(item.source, item.status, item.reason) for item in plan.rejected]
    runs += [{"source": str(item.path), "status": "skipped", "reason": item.reason} for item in plan.left_out]
    write_table(out / "index.parquet", index)
    write_table(out / "runs.parquet", runs_table(runs))
    image = nib.Nifti1Image(mask.astype(np.uint8), GRID_AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(GRID_AFFINE, code=4)
    image.set_qform(GRID_AFFINE, code=4)
    nib.save(image, out / "mask.nii.gz")
    shards = [_shard_facts(record) for record in records if record["index"]]
    subjects = set(zip(*(index.column(name).to_pylist() for name in ("dataset", "subject")), strict=True))
    meta = {
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
        "software": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "nibabel": nib.__version__,
            "nilearn": nilearn.__version__,
            "webdataset": webdataset.__version__,
        },
        "licence_note": settings.licence_note,
    }
    write_whole(out / "corpus.json", json.dumps(meta, indent=1).encode())


def _shard_facts(record: dict[str, Any]) -> dict[str, Any]:
    frames = sum(row["n_frames"] for row in record["index"])
    return {**{k: record[k] for k in ("name", "bytes", "sha256")}, "samples": len(record["index"]), "frames": frames}


def _failures(records: list[dict[str, Any]], plan: Plan) -> list[tuple[Path, str]]:
    failed = [(item.source.path, item.reason) for item in plan.rejected if item.status == "failed"]
    for record in records:
        failed += [(Path(row["source"]), row["reason"]) for row in record["runs"] if row["status"] == "failed"]
    return failed


def _all_failed(failed: list[tuple[Path, str]]) -> str:
    first = failed[0][1]
    return first if len(failed) == 1 else f"none of {len(failed)} runs can be used; the first: {first}"


def _result(corpus: Corpus, plan: Plan, records: list[dict[str, Any]], made: int) -> BuildResult:
    skipped = [LeftOut(item.source.path, item.reason) for item in plan.rejected if item.status == "skipped"]
    left_out = [*plan.left_out, *skipped]
    kept = len(corpus.meta["shards"]) - made
    return BuildResult(corpus, _failures(records, plan), [replace(item) for item in left_out], made, kept)
