"""What is in a corpus, for a person to read.

In: an opened corpus. Out: text. Everything comes from corpus.json, index.parquet and runs.parquet; no shard is read.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from sharding.corpus import Corpus
from sharding.format import SPLITS
from sharding.split import empty_splits


def describe(corpus: Corpus) -> str:
    """Totals, datasets, splits, times, sizes, and what failed."""
    runs = pq.read_table(corpus.path / "runs.parquet").to_pylist()
    sections = [_totals(corpus), _datasets(corpus, runs), _splits(corpus), _source(runs), _faults(runs)]
    return "\n\n".join(section for section in sections if section)


def _totals(corpus: Corpus) -> str:
    totals, meta = corpus.meta["totals"], corpus.meta
    tr = f"{corpus.tr:g} s" if corpus.tr else "each run's own"
    return _columns(
        [
            ("corpus", str(corpus.path)),
            ("id", corpus.corpus_id[:16]),
            ("subjects", f"{totals['subjects']:,}"),
            ("runs", f"{totals['runs']:,}" + (f" (and {totals['failed']:,} failed)" if totals["failed"] else "")),
            ("frames", f"{totals['frames']:,} ({_hours(corpus):.2f} hours at TR {tr})"),
            ("samples", f"{totals['samples']:,} of up to 128 frames, in {len(meta['shards']):,} shards"),
            ("size", _size(totals["bytes"])),
            ("voxels", f"{corpus.num_voxels:,} in the mask, of {corpus.mask.size:,} of the 2 mm MNI152 grid"),
            ("licence", meta["licence_note"] or "not stated (fmri-shards build --licence TEXT)"),
        ]
    )


def _datasets(corpus: Corpus, runs: list[dict]) -> str:
    lines = [("dataset", "subjects", "runs", "failed", "frames", "hours")]
    index = corpus.index
    for name in sorted(set(index["dataset"])):
        rows = index["dataset"] == name
        counts = Counter(run["status"] for run in runs if run["dataset"] == name)
        frames = index["n_frames"][rows]
        lines.append(
            (
                name,
                f"{len(set(index['subject'][rows])):,}",
                f"{counts['ok']:,}",
                f"{counts['failed']:,}",
                f"{frames.sum():,}",
                f"{(frames * index['tr'][rows]).sum() / 3600:.2f}",
            )
        )
    return _table(lines)


def _splits(corpus: Corpus) -> str:
    index = corpus.index
    lines = [("split", "subjects", "frames")]
    for name in SPLITS:
        rows = index["split"] == name
        people = set(zip(index["dataset"][rows], index["subject"][rows], strict=True))
        lines.append((name, f"{len(people):,}", f"{index['n_frames'][rows].sum():,}"))
    return "\n".join(filter(None, [_table(lines), empty_split_note(corpus)]))


def empty_split_note(corpus: Corpus) -> str:
    """A line for splits that nobody fell into, or nothing."""
    empty = empty_splits(corpus.index["split"])
    if not empty:
        return ""
    people = corpus.meta["totals"]["subjects"]
    return (
        f"nobody in {' and '.join(empty)}: a person is never divided, and there {'is' if people == 1 else 'are'} "
        f"only {people}; add people, change --splits, or give a table with a column split"
    )


def _source(runs: list[dict]) -> str:
    ok = [run for run in runs if run["status"] == "ok"]
    lines = [("source", "runs")]
    facts = Counter(
        f"{run['source_shape']} voxels of {run['source_voxel_mm']} mm, {run['source_orientation']}, "
        f"{run['source_frames']} volumes, TR {run['source_tr']:g} s, {run['geometry']}"
        for run in ok
    )
    lines += [(text, f"{count:,}") for text, count in facts.most_common(12)]
    if len(facts) > 12:
        lines.append((f"... and {len(facts) - 12} more kinds", ""))
    space = Counter(run["space"] for run in ok)
    quality = [
        ("tSNR, median", f"{np.median([run['tsnr_median'] for run in ok]):.1f}"),
        ("clipped values", f"{np.mean([run['clipped_fraction'] for run in ok]):.2e}"),
        ("outside the image", f"{np.mean([run['outside_fov'] for run in ok]):.1%} of stored voxels"),
        ("MNI152 space by", ", ".join(f"{name} ({count})" for name, count in space.most_common())),
    ]
    return _table(lines) + "\n\n" + _columns(quality)


def _faults(runs: list[dict]) -> str:
    failed = [run["reason"] for run in runs if run["status"] == "failed"]
    skipped = sum(run["status"] == "skipped" for run in runs)
    lines = [f"failed: {reason}" for reason in failed[:10]]
    if len(failed) > 10:
        lines.append(f"... and {len(failed) - 10} more failed; all are in runs.parquet")
    if skipped:
        lines.append(f"left out: {skipped} files found in folders that are no runs; see runs.parquet")
    return "\n".join(lines)


def _hours(corpus: Corpus) -> float:
    return float((corpus.index["n_frames"] * corpus.index["tr"]).sum() / 3600)


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
