"""What a task file (TASK.yaml) may say. Paths are relative to the working directory, as in run configurations.

The string under a field is its documentation. `load_task` checks types and sense; nothing is opened here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmri_scale.config import load_typed
from fmri_scale.errors import ConfigError
from fmri_scale.evaluation.baselines import KINDS
from fmri_scale.evaluation.entities import LEVELS
from fmri_scale.evaluation.tuning.settings import TuningConfig, check_tuning

PREDICTION = ("classification", "regression")
TASK_KINDS = (*PREDICTION, "retrieval", "reidentification")
SPLIT_METHODS = ("holdout", "k_fold", "leave_one_out", "column", "file")
GROUPS = ("family", "subject", "session", "run", "image")
PROBES = ("linear", "knn", "attentive")


@dataclass
class TargetConfig:
    """What is predicted."""

    table: str = ""
    "Table (TSV, CSV, parquet) with a row a subject, session or run."
    column: str = ""
    "Column of the table to predict."
    missing: list[str] = field(default_factory=list)
    "Texts that mean that a value is missing, beside empty, n/a, NA and NaN."
    family: list[str] = field(default_factory=list)
    "Columns of the table that name families (for example mother and father); people linked by any are one group."
    events: str = ""
    "BIDS folder (or one file) of *_events.tsv: units are then blocks, and labels come from event_column."
    event_column: str = "trial_type"
    "Column of the events with the label, or, for retrieval, the name of the image shown."
    delay_s: float = 5.0
    "Haemodynamic delay in s by which blocks are moved."
    ignore: list[str] = field(default_factory=list)
    "Labels of events left out, such as rest."
    min_overlap: float = 0.5
    "Least share of a clip that must lie in its block."
    images: str = ""
    "Retrieval: table of image embeddings, a column named image and one column a dimension."
    across: str = "session"
    "Reidentification: what query and gallery must not share, session or run. A run is never compared with itself."


@dataclass
class SplitConfig:
    """Who is trained on, who chooses, who is tested."""

    method: str = "holdout"
    "holdout, k_fold, leave_one_out (of groups of several classes each), column (of the table) or file (saved before)."
    group: str = "family"
    "What is never divided: family (subject where none is known), subject, session, run or image."
    fractions: list[float] = field(default_factory=lambda: [0.6, 0.2, 0.2])
    "Shares of train, validation and test of a holdout."
    folds: int = 5
    "Folds of k_fold."
    seed: int = 0
    "Decides the test set of a holdout, whatever the seeds of the task."
    column: str = "split"
    "Column for method column."
    file: str = ""
    "JSON for method file."


@dataclass
class BaselineConfig:
    """What stands beside the features in every table."""

    bold: str = ""
    "Corpus, or NIfTI runs (file, folder or table), of which baselines are computed; empty leaves only the constant."
    atlas: str = ""
    "Label image (NIfTI) for region series; without one every voxel of the mask is a region (small images only)."
    mask: str = ""
    "Brain mask of NIfTI runs."
    connectivity: list[str] = field(default_factory=lambda: ["correlation", "tangent"])
    "Connectomes: correlation, partial correlation, tangent."
    features: dict[str, str] = field(default_factory=dict)
    "Features that count as a baseline, such as those of the untrained backbone: name to .npz, {seed} as above."
    tokens: dict[str, str] = field(default_factory=dict)
    "The same with token features, for the attentive probe."
    patterns: bool = False
    "Also the mean activity of each region or voxel over a unit, for task states."
    band_hz: list[float] = field(default_factory=lambda: [0.0, 0.0])
    "Lowest and highest frequency kept in the series; 0 leaves that side open."


@dataclass
class ScoringConfig:
    """How results are counted."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    "Seeds of the division into train and validation (holdout) or into folds, of probes, and for {seed} in paths."
    draws: int = 2000
    "Bootstrap draws of groups."
    level: float = 0.95
    "Confidence level."
    top_k: list[int] = field(default_factory=lambda: [1, 5])
    "Retrieval: ranks up to which an image counts as found."


@dataclass
class TaskConfig:
    """One downstream task."""

    name: str = ""
    "Name of the task, for folders and reports."
    kind: str = "classification"
    "classification, regression, retrieval or reidentification."
    unit: str = "subject"
    "What has one prediction: subject, session, run or block; clip scores are averaged over it."
    features: dict[str, str] = field(default_factory=dict)
    "Name to .npz of fmri-scale features; {seed} in the path is replaced by each seed."
    tokens: dict[str, str] = field(default_factory=dict)
    "Name to .npz with token features, for the attentive probe."
    probes: list[str] = field(default_factory=lambda: ["linear", "knn"])
    "Probes on features: linear, knn; and attentive on tokens."
    balanced: bool = False
    "Weight classes alike in linear probes and in tuning."
    target: TargetConfig = field(default_factory=TargetConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    baselines: BaselineConfig = field(default_factory=BaselineConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)


def load_task(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> TaskConfig:
    """Read and check a task file.

    Raises
    ------
    ConfigError
        An unknown key, a wrong type, or values that do not fit together.
    """
    task = load_typed(TaskConfig, files, overrides)
    check_task(task)
    return task


def check_task(task: TaskConfig) -> None:
    """Raise ConfigError for the first value that cannot be used."""
    _one_of("kind", task.kind, TASK_KINDS)
    _one_of("unit", task.unit, LEVELS)
    _one_of("split.method", task.split.method, SPLIT_METHODS)
    _one_of("split.group", task.split.group, GROUPS)
    _one_of("target.across", task.target.across, ("session", "run"))
    for probe in task.probes:
        _one_of("probes", probe, PROBES)
    for kind in task.baselines.connectivity:
        _one_of("baselines.connectivity", kind, KINDS)
    _check_target(task)
    if not task.name or not all(c.isalnum() or c in "-_" for c in task.name):
        raise ConfigError(f"name={task.name!r}: expected letters, digits, - and _; it names files")
    if not (task.features or task.tokens or task.tuning.releases or task.baselines.bold):
        raise ConfigError(
            "nothing to evaluate: give features (name: file.npz), tuning.releases (name: folder), or "
            "baselines.bold for baselines alone"
        )
    check_tuning(task.tuning, task.kind in PREDICTION)
    if len(task.split.fractions) != 3:
        raise ConfigError(f"split.fractions={task.split.fractions}: expected three shares: train, validation, test")
    if not task.scoring.seeds or len(set(task.scoring.seeds)) != len(task.scoring.seeds):
        raise ConfigError(f"scoring.seeds={task.scoring.seeds}: expected one or more different seeds")
    if task.scoring.draws < 100 or not 0.5 <= task.scoring.level < 1:
        raise ConfigError(f"scoring: {task.scoring.draws} draws at level {task.scoring.level}: expected 100+, 0.5 to 1")
    if len(task.baselines.band_hz) != 2 or not all(math.isfinite(f) and f >= 0 for f in task.baselines.band_hz):
        raise ConfigError(f"baselines.band_hz={task.baselines.band_hz}: expected two frequencies, 0 for none")
    low, high = task.baselines.band_hz
    if low >= high > 0:
        raise ConfigError(f"baselines.band_hz={task.baselines.band_hz}: expected the lower frequency first")


def _check_target(task: TaskConfig) -> None:
    target = task.target
    if task.kind in PREDICTION and bool(target.events) == bool(target.table):
        raise ConfigError("target: give a table with a column, or events; one of them")
    if task.kind in PREDICTION and target.table and not target.column:
        raise ConfigError(f"target.column: name the column of {target.table} to predict")
    if (task.unit == "block") != bool(target.events):
        raise ConfigError(
            f"unit={task.unit} with target.events={target.events!r}: blocks come from events, and only they"
        )
    if task.kind == "retrieval" and not (target.events and target.images):
        raise ConfigError("kind=retrieval needs target.events (which image was seen when) and target.images (vectors)")
    if task.kind == "reidentification" and task.unit not in ("session", "run"):
        raise ConfigError(f"kind=reidentification compares sessions or runs; unit={task.unit}")
    if task.kind == "regression" and target.events:
        raise ConfigError("kind=regression takes its values from a table; events give classes")
    if (task.tokens or task.baselines.tokens) and task.kind not in PREDICTION:
        raise ConfigError(f"tokens with kind={task.kind}: tokens need {' or '.join(PREDICTION)}; give features instead")
    if not 0 < target.min_overlap <= 1:
        raise ConfigError(f"target.min_overlap={target.min_overlap}: expected a share above 0 and up to 1")


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value!r}: expected one of {', '.join(allowed)}")
