"""What an experiment file may say.

Everywhere in a text, {cohort.NAME} is the folder of the images of a corpus, {corpus.NAME} the corpus made of them,
{atlas}, {labels} and {table} what is given under these names, and {out} the experiment's folder. The string under a
field is its documentation.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fmri_scale.config import load_typed
from fmri_scale.errors import ConfigError
from sharding.phantom_truth import TruthSettings

SOURCES = ("folder", "corpus", "known_truth", "adhd")


@dataclass
class CorpusSource:
    """Where a corpus comes from."""

    source: str = "folder"
    "folder (NIfTI to build from), corpus (one that is there), known_truth (synthetic) or adhd (nilearn fetches it)."
    path: str = ""
    "The folder or corpus."
    settings: dict[str, Any] = field(default_factory=dict)
    "known_truth: what differs from its defaults (subjects, volumes, ...); adhd: n_subjects."
    build: list[str] = field(default_factory=list)
    "Arguments of fmri-shards build, for example [--target-tr, native]."


@dataclass
class AdhdSettings:
    """What can be set of nilearn's ADHD data."""

    n_subjects: int = 40


@dataclass
class TaskEntry:
    """A downstream task."""

    corpus: str = ""
    "Name of the corpus whose features it uses."
    items: list[str] = field(default_factory=list)
    "Task files and overrides; features and the untrained baseline are added."


@dataclass
class AttributionEntry:
    """Regions weighed for one task and arm, with the first seed."""

    task: str = ""
    "Name of the task."
    arm: str = ""
    "Name of the arm."
    atlas: str = "{atlas}"
    "Label image."
    labels: str = "{labels}"
    "Its table; empty names regions by number."
    method: str = "occlusion"
    "occlusion or gradients."
    permutations: int = 1000
    "Of the truth over groups."
    clips: int = 4
    "Most clips of a unit."


@dataclass
class ExperimentConfig:
    """One comparison."""

    name: str = ""
    "Name, for the report."
    corpora: dict[str, CorpusSource] = field(default_factory=dict)
    "Data by name."
    atlas: str = ""
    "Label image for region masks, baselines and attribution, where the arms and tasks ask for {atlas}."
    labels: str = ""
    "Table of its labels, for {labels}."
    table: str = ""
    "Table of people, for {table}."
    pretrain: list[str] = field(default_factory=list)
    "Run files and overrides that all arms share."
    arms: dict[str, list[str]] = field(default_factory=dict)
    "Arm to its own overrides; the first is the one that others are compared with."
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    "Seeds of pretraining; also those of every task."
    launcher: list[str] = field(default_factory=list)
    "Command that trains, such as [bash, launch/local.sh]; empty: one process of this Python."
    features: list[str] = field(default_factory=list)
    "Of clips: stride=FRAMES, batch_size=N, device=NAME, tokens=true (for attentive probes beside the others)."
    untrained: bool = True
    "Add the untrained backbone of every architecture and seed as a baseline."
    max_fraction_gap: float = 0.02
    "Difference between arms in the in-brain fraction hidden above which the report warns."
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    "Tasks by name."
    attribution: dict[str, AttributionEntry] = field(default_factory=dict)
    "Attributions by name."
    final: bool = True
    "Open the test sets; false scores on validation while the experiment is being designed."

    def fill(self, text: str, out: Path) -> str:
        """Replace the placeholders of a text."""
        for name, value in (("table", self.table), ("atlas", self.atlas), ("labels", self.labels)):
            if f"{{{name}}}" in text and not value:
                raise ConfigError(f"{name} must be given ({name}=FILE): {text!r} asks for it")
            text = text.replace(f"{{{name}}}", value)
        for name in self.corpora:
            text = text.replace(f"{{cohort.{name}}}", str(self.cohort(name, out)))
            text = text.replace(f"{{corpus.{name}}}", str(self.corpus(name, out)))
        return text.replace("{out}", str(out))

    def cohort(self, name: str, out: Path) -> Path:
        """Folder of a corpus' images."""
        entry = self.corpora[name]
        return Path(entry.path) if entry.source == "folder" else out / "data" / name / "images"

    def corpus(self, name: str, out: Path) -> Path:
        """Folder of a corpus."""
        entry = self.corpora[name]
        return Path(entry.path) if entry.source == "corpus" else out / "corpora" / name

    def to_json(self) -> str:
        """Everything that decides the results, as canonical text."""
        return json.dumps(asdict(self), sort_keys=True)


def load_experiment(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read and check an experiment file.

    Raises
    ------
    ConfigError
        An unknown key, a wrong type, or a name that refers to nothing.
    """
    config = load_typed(ExperimentConfig, files, overrides)
    _check(config)
    return config


def source_settings(entry: CorpusSource, name: str) -> TruthSettings | AdhdSettings | None:
    """Return the settings of a source that makes or fetches its images; ConfigError where they do not belong to it."""
    where = f"corpora.{name}.settings"
    if entry.source == "known_truth":
        return load_typed(TruthSettings, base=entry.settings, where=where)
    if entry.source == "adhd":
        return load_typed(AdhdSettings, base=entry.settings, where=where)
    if entry.settings:
        raise ConfigError(f"{where}={entry.settings}: a {entry.source} has none; they are for known_truth and adhd")
    return None


def _check(config: ExperimentConfig) -> None:
    if not (config.name and config.corpora and config.arms and config.seeds and config.tasks):
        raise ConfigError("an experiment needs name, corpora, arms, seeds and tasks")
    for kind, names in (("arms", config.arms), ("corpora", config.corpora), ("tasks", config.tasks)):
        for name in names:
            if not all(c.isalnum() or c in "-_" for c in name):
                raise ConfigError(f"{kind}: {name!r} names a folder; use letters, digits, - and _")
    if "untrained" in config.arms:
        raise ConfigError("arms: untrained is added by itself (untrained: true); choose another name")
    for name, entry in config.corpora.items():
        if entry.source not in SOURCES:
            raise ConfigError(f"corpora.{name}.source={entry.source!r}: expected one of {', '.join(SOURCES)}")
        if entry.source in ("folder", "corpus") and not entry.path:
            raise ConfigError(f"corpora.{name}.path: give the {entry.source} (corpora.{name}.path=...)")
        source_settings(entry, name)
    for name, task in config.tasks.items():
        if task.corpus not in config.corpora:
            raise ConfigError(f"tasks.{name}.corpus={task.corpus!r}: expected one of {', '.join(config.corpora)}")
    for name, item in config.attribution.items():
        if item.task not in config.tasks or item.arm not in config.arms:
            raise ConfigError(f"attribution.{name}: no task {item.task!r} or no arm {item.arm!r} in this experiment")
