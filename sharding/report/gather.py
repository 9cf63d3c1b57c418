"""The numbers of a corpus' report: counts by dataset, quality figures, runs that stand out, what was left out and why.

In: an opened corpus (index.parquet, runs.parquet, corpus.json). Out: plain values, from which the page and its figures
are made. Quality figures that a run lacks are null in runs.parquet and are passed over; how many runs have one is told.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sharding.corpus import Corpus
from sharding.errors import CorpusError
from sharding.format import SPLITS

Row = dict[str, Any]

OUTLIER = 3.5
"Robust z from which a run is named (Iglewicz and Hoaglin 1993)."
FEWEST = 5
"Runs below which a dataset is compared with the whole corpus."


@dataclass(frozen=True)
class Quality:
    """A quality figure: a column of runs.parquet."""

    column: str
    title: str
    bad: int
    "1 where high values are bad, -1 where low ones are, 0 where both are."
    fine: float | None = None
    "From here on the good side of it nothing is wrong, however far from the others."

    def stands_out(self, value: float, z: float) -> bool:
        """Whether a value with this robust z is to be told."""
        if self.fine is not None and (value - self.fine) * self.bad <= 0:
            return False
        return (z * self.bad if self.bad else abs(z)) >= OUTLIER


QUALITY = (
    Quality("tsnr_median", "tSNR, median over voxels", -1),
    Quality("dvars_median", "DVARS, median over frames (% of the mean)", 1),
    Quality("mean_fd", "framewise displacement, mean (mm)", 1),
    Quality("brain_covered", "share of the MNI152 brain with signal", -1),
    Quality("head_in_mask", "share of the signal inside the stored mask", -1),
    Quality("mask_dice", "overlap of the run's brain mask with the MNI152 brain (Dice)", -1),
    Quality("outside_fov", "share of stored voxels outside the image", 1),
    Quality("clipped_fraction", "share of values clipped by int8", 1),
    Quality("int8_corr_median", "temporal correlation of the int8 round trip, median", -1, fine=0.999),
    Quality("int8_corr_p5", "temporal correlation of the int8 round trip, 5th percentile", -1, fine=0.99),
    Quality("scrubbed_frames", "frames scrubbed", 1),
    Quality("negative_fraction", "share of negative values", 1),
    Quality("constant_fraction", "share of voxels that never change", 1),
    Quality("nonfinite_values", "values that were NaN or Inf", 1),
    Quality("zero_frames", "frames that were all zero", 1),
    Quality("sd", "standard deviation over mean of the run", 0),
)


@dataclass(frozen=True)
class Outlier:
    """A run that stands out in one figure."""

    run: str
    dataset: str
    title: str
    value: float
    middle: float
    "Median of the runs it is compared with."
    z: float
    compared: str
    "With which runs."


@dataclass(frozen=True)
class Report:
    """Everything that is told in numbers."""

    totals: Row
    datasets: list[Row]
    quality: dict[str, dict[str, list[float]]]
    "Title of a figure to dataset to values, runs without one left out."
    outliers: list[Outlier]
    failed: list[tuple[str, str]]
    "Run or file, and reason."
    skipped: list[tuple[str, int, str]]
    "Reason, how many, one of them."


def gather(corpus: Corpus) -> Report:
    """Count and compare; CorpusError where a table cannot be read."""
    file = corpus.path / "runs.parquet"
    try:
        runs = pq.read_table(file).to_pylist()
    except (OSError, ValueError) as error:  # arrow's errors are of these two kinds
        raise CorpusError(f"{file}: cannot be read ({error}); build the corpus again") from error
    ok = [run for run in runs if run["status"] == "ok"]
    quality = {q.title: values for q in QUALITY if (values := _by_dataset(ok, q))}
    failed = [(run_label(run), run["reason"]) for run in runs if run["status"] == "failed"]
    return Report(_totals(corpus, runs), _datasets(corpus, runs), quality, outliers(ok), failed, _skipped(runs))


def run_label(run: Row) -> str:
    """A run by its entities, for people: dataset, subject, session, task, run."""
    parts = [run["dataset"] or "?"]
    names = (("sub", "subject"), ("ses", "session"), ("task", "task"), ("run", "run"))
    parts += [f"{short}-{run[name]}" for short, name in names if run[name]]
    return " ".join([*parts, run["variant"]] if run.get("variant") else parts)


def figure_of(run: Row, quality: Quality) -> float | None:
    """A run's quality figure, None where it has none."""
    value = run.get(quality.column)
    if quality.column == "sd" and value is not None:
        value = value / run["mean"] if run["mean"] else None
    return None if value is None or not math.isfinite(value) else float(value)


def outliers(runs: list[Row]) -> list[Outlier]:
    """Runs whose figure lies far from the others of their dataset, on the side that is bad; worst first."""
    found = []
    for quality in QUALITY:
        values = _by_dataset(runs, quality)
        everyone = [value for mine in values.values() for value in mine]
        scales = {}
        for name, mine in values.items():
            few = len(mine) < FEWEST
            compared = f"all {len(everyone)} runs" if few else f"{len(mine)} runs of {name}"
            scales[name] = (*middle_and_spread(everyone if few else mine), compared)
        for run in runs:
            value = figure_of(run, quality)
            if value is None:
                continue
            middle, spread, compared = scales[run["dataset"]]
            z = (value - middle) / spread if spread else 0.0
            if quality.stands_out(value, z):
                found.append(Outlier(run_label(run), run["dataset"], quality.title, value, middle, z, compared))
    return sorted(found, key=lambda outlier: (-abs(outlier.z), outlier.run, outlier.title))


def middle_and_spread(values: list[float]) -> tuple[float, float]:
    """Median, and the standard deviation that the median (else mean) absolute deviation from it stands for.

    The spread is 0, so that nothing stands out, for fewer than FEWEST values and for equal ones.
    """
    middle = float(np.median(values))
    away = np.abs(np.array(values) - middle)
    if len(values) < FEWEST:
        return middle, 0.0
    return middle, 1.4826 * float(np.median(away)) or 1.2533 * float(np.mean(away))


def _by_dataset(runs: list[Row], quality: Quality) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {}
    for run in runs:
        if (value := figure_of(run, quality)) is not None:
            out.setdefault(run["dataset"], []).append(value)
    return dict(sorted(out.items()))


def _totals(corpus: Corpus, runs: list[Row]) -> Row:
    counts = Counter(run["status"] for run in runs)
    index = corpus.index
    return {
        "corpus": corpus.path.name,
        "id": corpus.corpus_id[:16],
        "subjects": len(set(zip(index["dataset"], index["subject"], strict=True))),
        "runs": counts["ok"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "samples": len(corpus),
        "frames": int(index["n_frames"].sum()),
        "hours": float((index["n_frames"] * index["tr"]).sum() / 3600),
        "bytes": sum(shard["bytes"] for shard in corpus.meta["shards"]),
        "shards": len(corpus.meta["shards"]),
        "voxels": corpus.num_voxels,
        "tr": corpus.tr,
        "licence": corpus.meta.get("licence_note", ""),
    }


def _datasets(corpus: Corpus, runs: list[Row]) -> list[Row]:
    index = corpus.index
    sizes = {shard["name"]: shard["bytes"] for shard in corpus.meta["shards"]}
    names = sorted(set(index["dataset"]) | {run["dataset"] for run in runs if run["status"] == "failed"})
    out = []
    for name in names:
        rows = index["dataset"] == name
        counts = Counter(run["status"] for run in runs if run["dataset"] == name)
        row: Row = {
            "dataset": name,
            "subjects": len(set(index["subject"][rows])),
            "runs": counts["ok"],
            "failed": counts["failed"],
            "frames": int(index["n_frames"][rows].sum()),
            "hours": float((index["n_frames"][rows] * index["tr"][rows]).sum() / 3600),
            "bytes": sum(sizes[shard] for shard in set(index["shard"][rows])),
        }
        for split in SPLITS:
            mine = rows & (index["split"] == split)
            row[f"{split} subjects"] = len(set(index["subject"][mine]))
            row[f"{split} frames"] = int(index["n_frames"][mine].sum())
        out.append(row)
    return out


def _skipped(runs: list[Row]) -> list[tuple[str, int, str]]:
    """Inputs that were left out, counted by reason."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        if run["status"] == "skipped":
            reasons.setdefault(_kind(run["reason"]), []).append(str(run["source"]))
    return [(reason, len(sources), sources[0]) for reason, sources in sorted(reasons.items(), key=lambda r: -len(r[1]))]


def _kind(reason: str) -> str:
    """A reason without the file it begins with, so that equal ones are counted together."""
    start, colon, rest = reason.partition(": ")
    return rest if colon and ("/" in start or ".nii" in start) else reason
