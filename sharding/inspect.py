"""What is in a corpus, for a person to read.

In: an opened corpus. Out: text. Everything comes from corpus.json, index.parquet and runs.parquet; no shard is read.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding.corpus import Corpus
from sharding.errors import CorpusError
from sharding.format import SPLITS
from sharding.split import empty_splits

COLUMNS = [
    *("status", "reason", "dataset", "source_shape", "source_voxel_mm", "source_orientation", "source_frames"),
    *("source_tr", "geometry", "space", "tsnr_median", "clipped_fraction", "outside_fov"),
]
"Columns of runs.parquet that are looked at."

KINDS = ["source_shape", "source_voxel_mm", "source_orientation", "source_frames", "source_tr", "geometry"]
"What makes runs be of one kind."


def describe(corpus: Corpus) -> str:
    """Totals, datasets, splits, times, sizes, and what failed; CorpusError where runs.parquet cannot be read."""
    runs = _runs(corpus.path / "runs.parquet")
    names = ["dataset", "subject", "split", "n_frames", "tr"]
    samples = pa.table({name: corpus.index.read(name, dictionary=name in names[:3]) for name in names})
    samples = samples.append_column("seconds", pc.multiply(samples["n_frames"], samples["tr"]))
    sections = [_totals(corpus, samples), _datasets(samples, runs), _splits(corpus, samples), _source(runs)]
    return "\n\n".join(section for section in [*sections, _faults(runs)] if section)


def _runs(file: Path) -> pa.Table:
    """The columns looked at; CorpusError where they cannot be read."""
    try:
        return pq.read_table(file, columns=COLUMNS)
    except (OSError, ValueError, pa.ArrowException) as error:
        said = " ".join(str(error).split())[:200]
        raise CorpusError(f"{file}: cannot be read ({said}); restore it or build the corpus again") from error


def _totals(corpus: Corpus, samples: pa.Table) -> str:
    totals, meta = corpus.meta["totals"], corpus.meta
    tr = f"{corpus.tr:g} s" if corpus.tr else "each run's own"
    return _columns(
        [
            ("corpus", str(corpus.path)),
            ("id", corpus.corpus_id[:16]),
            ("subjects", f"{totals['subjects']:,}"),
            ("runs", f"{totals['runs']:,}" + (f" (and {totals['failed']:,} failed)" if totals["failed"] else "")),
            ("frames", f"{totals['frames']:,} ({_hours(samples):.2f} hours at TR {tr})"),
            ("samples", f"{totals['samples']:,} of up to 128 frames, in {len(meta['shards']):,} shards"),
            ("size", _size(totals["bytes"])),
            ("voxels", f"{corpus.num_voxels:,} in the mask, of {corpus.mask.size:,} of the 2 mm MNI152 grid"),
            ("licence", meta["licence_note"] or "not stated (fmri-shards build --licence TEXT)"),
        ]
    )


def _datasets(samples: pa.Table, runs: pa.Table) -> str:
    lines = [("dataset", "subjects", "runs", "failed", "frames", "hours")]
    people = _count(samples.group_by(["dataset", "subject"]).aggregate([]), ["dataset"])
    status = _count(runs, ["dataset", "status"])
    sums = samples.group_by("dataset").aggregate([("n_frames", "sum"), ("seconds", "sum")]).to_pylist()
    for row in sorted(sums, key=lambda row: row["dataset"]):
        name = row["dataset"]
        counts = [people[name,], status.get((name, "ok"), 0), status.get((name, "failed"), 0), row["n_frames_sum"]]
        lines.append((name, *(f"{count:,}" for count in counts), f"{row['seconds_sum'] / 3600:.2f}"))
    return _table(lines)


def _splits(corpus: Corpus, samples: pa.Table) -> str:
    people = _count(samples.group_by(["split", "dataset", "subject"]).aggregate([]), ["split"])
    sums = samples.group_by("split").aggregate([("n_frames", "sum")]).to_pylist()
    frames = {row["split"]: row["n_frames_sum"] for row in sums}
    lines = [("split", "subjects", "frames")]
    lines += [(name, f"{people.get((name,), 0):,}", f"{frames.get(name, 0):,}") for name in SPLITS]
    return "\n".join(filter(None, [_table(lines), empty_split_note(corpus)]))


def _count(table: pa.Table, names: list[str]) -> dict[tuple, int]:
    """Rows of a table by the values of some columns."""
    counts = table.group_by(names).aggregate([([], "count_all")]).to_pylist()
    return {tuple(row[name] for name in names): row["count_all"] for row in counts}


def empty_split_note(corpus: Corpus) -> str:
    """A line for splits that nobody fell into, or nothing."""
    empty = empty_splits(pc.unique(corpus.index.read("split")).to_pylist())
    if not empty:
        return ""
    people = corpus.meta["totals"]["subjects"]
    return (
        f"nobody in {' and '.join(empty)}: a person is never divided, and there {'is' if people == 1 else 'are'} "
        f"only {people}; add people, change --splits, or give a table with a column split"
    )


def _source(runs: pa.Table) -> str:
    ok = runs.filter(pc.equal(runs["status"], "ok"))
    kinds = sorted(_count(ok, KINDS).items(), key=lambda item: (-item[1], item[0]))
    lines = [("source", "runs")]
    for (shape, mm, orientation, frames, tr, geometry), count in kinds[:12]:
        lines.append(
            (f"{shape} voxels of {mm} mm, {orientation}, {frames} volumes, TR {tr:g} s, {geometry}", f"{count:,}")
        )
    if len(kinds) > 12:
        lines.append((f"... and {len(kinds) - 12} more kinds", ""))
    space = sorted(_count(ok, ["space"]).items(), key=lambda item: (-item[1], item[0]))
    quality = [
        ("tSNR, median", f"{np.median(ok['tsnr_median'].to_numpy()):.1f}"),
        ("clipped values", f"{np.mean(ok['clipped_fraction'].to_numpy()):.2e}"),
        ("outside the image", f"{np.mean(ok['outside_fov'].to_numpy()):.1%} of stored voxels"),
        ("MNI152 space by", ", ".join(f"{name} ({count})" for (name,), count in space)),
    ]
    return _table(lines) + "\n\n" + _columns(quality)


def _faults(runs: pa.Table) -> str:
    failed = runs.filter(pc.equal(runs["status"], "failed"))
    skipped = pc.sum(pc.equal(runs["status"], "skipped")).as_py() or 0
    lines = [f"failed: {reason}" for reason in failed["reason"][:10].to_pylist()]
    if failed.num_rows > 10:
        lines.append(f"... and {failed.num_rows - 10:,} more failed; all are in runs.parquet")
    if skipped:
        lines.append(f"left out: {skipped:,} files found in folders that are no runs; see runs.parquet")
    return "\n".join(lines)


def _hours(samples: pa.Table) -> float:
    return (pc.sum(samples["seconds"]).as_py() or 0.0) / 3600


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _columns(pairs: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
