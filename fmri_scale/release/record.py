"""How a released model came about, as `training.json` keeps it: all from the files of the run, nothing typed.

In: a checkpoint folder and, where it still lies in its run, the run's metrics. Out: one JSON object. Paths of the
machine it was trained on are left out; the corpus is named by its id.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from fmri_scale import __version__
from fmri_scale.checkpoint import CheckpointDir, TrainingState, layout
from fmri_scale.config import Config, to_dict
from fmri_scale.errors import CheckpointError
from fmri_scale.release.hub import is_name
from sharding.errors import ShardingError

CURVE_POINTS = 400
"Most points of the loss curve that are kept; each is the mean over its part of the run."
PLACES = ("run_dir", "start_from", "data.corpus", "data.more_corpora", "data.cache_dir", "mask.atlas", "mask.labels")
"Configuration keys that hold paths of the training machine; of these the last part stays."


def training_record(
    checkpoint: CheckpointDir, config: Config, state: TrainingState, corpus: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of `training.json`.

    Parameters
    ----------
    checkpoint : the exported one.
    config, state : as read from it.
    corpus : its `corpus.json`.
    """
    run_dir = checkpoint.path.parent.parent
    rows = _rows(run_dir / "metrics.jsonl", state.step)
    return {
        "steps": state.step,
        "clips": state.clips,
        "frames": state.clips * config.model.num_frames,
        "skipped": state.guards,
        "world_size": state.world_size,
        "started_from": _start(run_dir / "start.json"),
        "config": _without_paths(to_dict(config)),
        "data": corpus_facts(corpus, config.data.corpus, config.data.split),
        "more_data": [_further(folder, config.data.split) for folder in config.data.more_corpora],
        "throughput": _throughput(rows),
        "energy": _energy(state.metrics),
        "last": state.metrics,
        "loss_curve": loss_curve(rows),
        "software": state.software,
        "exported_by": f"fmri_scale {__version__}",
    }


def corpus_facts(corpus: dict[str, Any], folder: str, split: str) -> dict[str, Any]:
    """Return what a release tells about its data: identity, totals, counts by dataset, settings, licence note."""
    facts = {
        "corpus_id": corpus["corpus_id"],
        "split": split,
        "tr": corpus["tr"],
        "totals": corpus["totals"],
        "datasets": _counts(corpus, folder),
        "settings": corpus["settings"],
        "software": corpus["software"],
        "licence_note": corpus.get("licence_note", ""),
    }
    return facts


def _further(folder: str, split: str) -> dict[str, Any]:
    """Return the facts of one of `data.more_corpora`; its name alone where it is no longer at hand."""
    opened = _opened(folder)
    return {"name": _bare(folder)} | (corpus_facts(opened.meta, folder, split) if opened else {})


def _opened(folder: str) -> Any:
    """Return a corpus, or None where it has moved since or this environment cannot read it (no pyarrow)."""
    try:
        from sharding.corpus import open_corpus

        return open_corpus(folder, check_shards=False) if folder else None
    except (ShardingError, ImportError):
        return None


def loss_curve(rows: list[dict[str, Any]]) -> list[list[float]]:
    """Return `[step, loss]` pairs of a run, thinned to CURVE_POINTS by averaging neighbours."""
    points = [(row["step"], row["loss"]) for row in rows if isinstance(row.get("loss"), float | int)]
    size = -(-len(points) // CURVE_POINTS) or 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [[part[-1][0], float(f"{statistics.fmean(loss for _, loss in part):.6g}")] for part in parts]


def _counts(corpus: dict[str, Any], folder: str) -> dict[str, dict[str, int]]:
    """Return counts by dataset: with subjects, runs and splits where the corpus is still at hand."""
    opened = _opened(folder)
    if opened is None or opened.corpus_id != corpus["corpus_id"]:
        return _counts_by_shard(corpus)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    names = ("dataset", "subject", "session", "task", "run", "split", "n_frames", "start_frame")
    seen: set[tuple[str, str]] = set()
    for dataset, subject, *_run, split, frames, start in zip(*(opened.index[name] for name in names), strict=True):
        entry = counts[str(dataset)]
        entry["subjects"] += (dataset, subject) not in seen
        entry["runs"] += int(start) == 0
        entry["samples"] += 1
        entry["frames"] += int(frames)
        entry[f"frames_{split}"] += int(frames)
        seen.add((dataset, subject))
    return {name: dict(entry) for name, entry in sorted(counts.items())}


def _counts_by_shard(corpus: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return counts by dataset from the shards' names, DATASET-NNNNNN.tar."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"samples": 0, "frames": 0})
    for shard in corpus["shards"]:
        entry = counts[shard["name"].rpartition("-")[0]]
        entry["samples"] += shard["samples"]
        entry["frames"] += shard["frames"]
    return dict(sorted(counts.items()))


def _rows(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the metrics rows up to a step; none where the checkpoint was taken out of its run."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a killed run can leave half a line
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
            rows.append(row)
    return rows


def _throughput(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians over the run of the speeds it logged; empty where it logged none."""
    found = {}
    for key in ("frames_per_s", "frames_per_s_per_rank", "model_tflops_per_rank", "mfu", "data_wait_fraction"):
        values = [row[key] for row in rows if isinstance(row.get(key), float | int)]
        if values:
            found[f"{key}_median"] = float(f"{statistics.median(values):.6g}")
    return found


def _energy(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the energy of all GPUs over the whole run in kWh, where the driver counted it; empty elsewhere."""
    joules = metrics.get("energy_j")
    return {"gpu_kwh": float(f"{joules / 3.6e6:.6g}")} if joules else {}


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    for place in PLACES:
        *sections, key = place.split(".")
        part = config
        for section in sections:
            part = part[section]
        value = part[key]
        part[key] = [_bare(v) for v in value] if isinstance(value, list) else _bare(value)
    return config


def _bare(place: str) -> str:
    """Return the last part of a path; a name on the hub stays whole."""
    return place if is_name(place) and not Path(place).exists() else Path(place).name


def _start(path: Path) -> dict[str, Any]:
    """Return which release a run started from (`start.json`), empty where it began with random weights."""
    try:
        content = json.loads(path.read_text())
        return {"source": _bare(content["source"]), "release": content["release"], "new": content["new"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_corpus(checkpoint: CheckpointDir) -> dict[str, Any]:
    """Return the `corpus.json` that a checkpoint carries.

    Raises
    ------
    CheckpointError : it carries none that is whole.
    """
    path = checkpoint.path / layout.CORPUS
    try:
        content = json.loads(path.read_text())
        for key in ("corpus_id", "tr", "totals", "settings", "software", "shards"):
            content[key]
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the description of a corpus ({type(error).__name__}: {error})") from error
