"""Make one shard: the work unit of a build, a function of its planned runs and the settings alone.

In: a `PlannedShard`. Out: the shard's tar under its final name, and its record (plain values): index rows, a row for
each run, size and sha256. A run that cannot be used is left out of the shard and its reason stands in its row.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sharding.discover import RunSource
from sharding.errors import InputError
from sharding.index import Row, place_columns
from sharding.plan import BuildSettings, PlannedRun, PlannedShard
from sharding.prepare import PreparedRun, prepare_run
from sharding.sample import samples_of
from sharding.write import ShardFile, member_places

Progress = Callable[[int], object]
"Called with the number of frames just dealt with."


def make_shard(shard: PlannedShard, settings: BuildSettings, path: Path, work: Path, progress: Progress) -> Row:
    """Make one shard.

    Parameters
    ----------
    shard, settings
        What goes in, and how.
    path
        Final name.
    work
        Scratch folder on the same file system.
    progress
        Told of frames.

    Returns
    -------
    The record: name, digest, bytes and sha256 (None where no run could be used and there is no file), index, runs.
    """
    index: list[Row] = []
    runs: list[Row] = []
    size, sha256 = None, None
    with ShardFile(path, work) as file:
        for planned in shard.runs:
            try:
                rows, run_row = _add_run(file, planned, settings, work, progress)
            except InputError as error:
                progress(planned.num_frames)
                runs.append(run_facts(planned.source, "failed", str(error), planned))
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


def run_facts(source: RunSource, status: str, reason: str, planned: PlannedRun | None = None) -> Row:
    """A row of runs.parquet as far as it is known without the data of the image."""
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
            progress(sample.facts["n_frames"])
        return rows, {**run_facts(source, "ok", "", planned), **_measured(run)}


def _measured(run: PreparedRun) -> dict[str, Any]:
    names = ("tsnr_median", "dvars_median", "negative_fraction", "constant_fraction", "zero_frames")
    return {
        "source_orientation": run.orientation,
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
        **{name: getattr(run.moments, name) for name in names},
    }
