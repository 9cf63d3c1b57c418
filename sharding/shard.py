"""Make one shard: the work unit of a build, a function of its planned runs and the settings alone.

In: a `PlannedShard`. Out: the shard's tar under its final name, and its record (plain values): index rows, a row for
each run, size and sha256. A run that cannot be used is left out of the shard and its reason stands in its row.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sharding.beside import BESIDE, stats_beside
from sharding.confounds import displacement
from sharding.discover import RunSource
from sharding.discover.source import writable
from sharding.errors import InputError, ShardingError
from sharding.index import Row, place_columns
from sharding.keys import run_label
from sharding.plan import BuildSettings, PlannedRun, PlannedShard
from sharding.prepare import PreparedRun, prepare_run
from sharding.privacy import reason_of
from sharding.sample import samples_of
from sharding.timing import header_tr
from sharding.write import ShardFile

Progress = Callable[[int], object]
"Called with the number of frames just dealt with; a negative one where they must be dealt with again."

Refused = Mapping[str, str]
"Label of a run (keys.run_label) to the reason why it is not to be touched."


def make_shard(
    shard: PlannedShard,
    settings: BuildSettings,
    path: Path,
    work: Path,
    progress: Progress,
    at: Callable[[str], object] = lambda label: None,
    refused: Refused = MappingProxyType({}),
) -> Row:
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
    at
        Told the label of each run before it is touched, and "" before the shard is named.
    refused
        Runs to leave out, and why.

    Returns
    -------
    The record: name, digest, bytes and sha256 (None where no run could be used and there is no file), index, runs.

    Raises
    ------
    OSError
        The shard cannot be written.
    """
    try:
        return _make_shard(shard, settings, path, work, progress, at, refused)
    except _SpoiltError as spoilt:  # part of the run is in the tar: once more without it
        progress(-spoilt.done)
        return make_shard(shard, settings, path, work, progress, at, {**refused, spoilt.label: str(spoilt)})


class _SpoiltError(Exception):
    """A run failed after some of it was written."""

    def __init__(self, label: str, reason: str, done: int) -> None:
        super().__init__(reason)
        self.label, self.done = label, done


def _make_shard(
    shard: PlannedShard,
    settings: BuildSettings,
    path: Path,
    work: Path,
    progress: Progress,
    at: Callable[[str], object],
    refused: Refused,
) -> Row:
    index: list[Row] = []
    runs: list[Row] = []
    size, sha256, done = None, None, 0

    def told(num_frames: int) -> None:
        nonlocal done
        done += num_frames
        progress(num_frames)

    with ShardFile(path, work) as file:
        for planned in shard.runs:
            label = run_label(planned.source)
            at(label)
            try:
                run = _prepare(planned, settings, work, refused.get(label))
            except InputError as error:
                told(planned.num_frames)
                runs.append(run_facts(planned.source, "failed", str(error), planned))
                continue
            try:
                rows, run_row = _add_run(file, run, planned, told)
            except (ShardingError, OSError):
                raise
            except Exception as error:
                raise _SpoiltError(label, _unexpected(planned, error), done) from error
            index += rows
            runs.append({**run_row, "shard": shard.name})
        at("")
        if index:
            size, sha256 = file.finish()
            index = [{**row, "shard": shard.name, **place_columns(row["key"], file.places)} for row in index]
    return {"name": shard.name, "digest": shard.digest, "bytes": size, "sha256": sha256, "index": index, "runs": runs}


def _prepare(planned: PlannedRun, settings: BuildSettings, work: Path, refused: str | None) -> PreparedRun:
    """Prepare a run; whatever is wrong with it becomes an `InputError`, but a disk that cannot be written stays."""
    if refused is not None:
        raise InputError(refused)
    source = planned.source
    try:
        run = prepare_run(
            source.path,
            settings.preprocessing,
            tr=source.tr,
            mask_path=source.mask,
            confounds_path=source.confounds,
            assume_mni=settings.assume_mni,
            scratch=work,
        )
    except (ShardingError, OSError):
        raise
    except Exception as error:  # a fault in a library is this run's alone, not its neighbours'
        raise InputError(_unexpected(planned, error)) from error
    try:
        _check_unchanged(run, planned)
    except InputError:
        run.close()
        raise
    return run


def _check_unchanged(run: PreparedRun, planned: PlannedRun) -> None:
    """Refuse a run whose files are not those that were planned: its shard would stand for other inputs."""
    source = planned.source
    if (run.info.size, run.info.mtime_ns) != (planned.info.size, planned.info.mtime_ns):
        raise InputError(f"{source.path}: changed since it was planned; build again when nothing writes to it")
    for name, now, then in zip(BESIDE, stats_beside(source), planned.beside, strict=True):
        if now != then:
            raise InputError(
                f"{getattr(source, name)}: {BESIDE[name]} of {source.path}, changed since the run was planned; build "
                "again when nothing writes to it"
            )


def _unexpected(planned: PlannedRun, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"{planned.source.path}: not enough memory for it; give each of fewer --workers more"
    said = " ".join(str(error).split())[:200]
    return f"{planned.source.path}: {type(error).__name__} ({said}), which no check foresaw; please report it"


def run_facts(source: RunSource, status: str, reason: str, planned: PlannedRun | None = None) -> Row:
    """A row of runs.parquet as far as it is known without the data of the image."""
    names = ("dataset", "subject", "session", "run", "task", "variant", "family")
    row: Row = {"source": source.alias or writable(source.path), "status": status}
    row["reason"] = writable(reason_of(source, reason))
    row |= {name: getattr(source, name) for name in names}
    if planned:
        info = planned.info
        row |= {
            "split": planned.split,
            "source_bytes": None if source.alias else info.size,  # either would tell files apart
            "source_mtime_ns": None if source.alias else info.mtime_ns,
            "source_shape": " x ".join(map(str, info.shape)),
            "source_voxel_mm": " x ".join(f"{size:.4g}" for size in info.voxel_mm),
            "source_dtype": str(info.dtype),
            "source_frames": info.num_frames,
        }
    return row


def _add_run(file: ShardFile, run: PreparedRun, planned: PlannedRun, progress: Progress) -> tuple[list[Row], Row]:
    rows = []
    with contextlib.closing(run):
        for sample in samples_of(run, planned.source, planned.split):
            file.add(sample.key, sample.members)
            rows.append(sample.facts)
            progress(sample.facts["n_frames"])
        return rows, {**run_facts(planned.source, "ok", "", planned), **_measured(run, planned.source)}


def _measured(run: PreparedRun, source: RunSource) -> dict[str, Any]:
    """What was found about a run, its quality, and how well its codes keep it."""
    names = ("tsnr_median", "dvars_median", "negative_fraction", "constant_fraction", "zero_frames")
    kept = run.round_trip.correlations()
    fd, fd_from = displacement(source.confounds, source.motion)
    return {
        "source_orientation": run.orientation,
        "source_tr": run.source_tr,
        "tr_from": source.tr_from or run.tr_from,
        "header_tr": header_tr(run.info),
        "space": run.space,
        "geometry": run.geometry,
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
        "scrubbed_frames": run.scrubbed,
        "mask_dice": run.mask_dice,
        "mean_fd": fd,
        "fd_from": writable(reason_of(source, fd_from)),
        "int8_corr_median": float(np.median(kept)) if kept.size else None,
        "int8_corr_p5": float(np.percentile(kept, 5)) if kept.size else None,
        **{name: getattr(run.moments, name) for name in names},
    }
