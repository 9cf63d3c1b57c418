"""Run an experiment: corpora, arms, untrained backbones, tasks, attribution, report. What is done is not done again.

In: an `ExperimentConfig` and a folder. Out: the folder with results.csv (every cell of every task), arms.csv (loss and
fraction hidden of every arm and seed) and report.html. Nothing in them depends on when or how often it was started.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fmri_scale.checkpoint.files import write_text
from fmri_scale.errors import ConfigError
from fmri_scale.evaluation.experiment.arms import (
    Arm,
    architecture,
    arms_of,
    corpus_id,
    feature_settings,
    make_arm,
    make_untrained,
    summary,
)
from fmri_scale.evaluation.experiment.data import make_corpora
from fmri_scale.evaluation.experiment.report import experiment_page
from fmri_scale.evaluation.experiment.schema import AttributionEntry, ExperimentConfig
from fmri_scale.evaluation.experiment.steps import digest, once
from fmri_scale.evaluation.tasks import TaskConfig, load_task
from fmri_scale.evaluation.tasks.run import run_task

CONFIG_FILE = "experiment.json"


@dataclass(frozen=True)
class Untrained:
    """The untrained backbones of one architecture: name in tables, and the path of their features by seed."""

    name: str
    pattern: str


def run_experiment(config: ExperimentConfig, out: Path) -> Path:
    """Run what is not done, then write the report; return its path.

    Raises
    ------
    ConfigError
        The folder holds another experiment.
    FmriScaleError, ShardingError
        A step failed; the message says which and why. Starting again continues.
    """
    arms = plan_experiment(config, out)
    out.mkdir(parents=True, exist_ok=True)
    _claim(config, out)
    make_corpora(config, out)
    corpora = {task.corpus: config.corpus(task.corpus, out) for task in config.tasks.values()}
    for arm in arms:
        make_arm(arm, config, corpora)
    baselines = _make_untrained(config, arms, corpora, out) if config.untrained else []
    for name in config.tasks:
        _run_task(config, name, baselines, out)
    for name, entry in config.attribution.items():
        _run_attribution(config, name, entry, out)
    return _report(config, arms, out)


def plan_experiment(config: ExperimentConfig, out: Path) -> list[Arm]:
    """List what would be trained; nothing is written.

    Raises
    ------
    ConfigError
        An arm, task or attribution does not resolve: found before days of training.
    """
    arms = arms_of(config, out)
    for name in config.tasks:
        task_of(config, name, [], out)
    for entry in config.attribution.values():
        config.fill(entry.atlas + entry.labels, out)
    return arms


def task_of(config: ExperimentConfig, name: str, baselines: list[Untrained], out: Path) -> TaskConfig:
    """Task with the features of every arm, and the untrained backbones as baselines."""
    entry = config.tasks[name]
    items = [config.fill(item, out) for item in entry.items]
    pattern = f"seed-{{seed}}/features/{entry.corpus}.npz"
    kinds = ["features", "tokens"] if feature_settings(config.features).tokens else ["features"]
    added = [f"{kind}.{arm}={out / 'arms' / arm / pattern}" for kind in kinds for arm in config.arms]
    of_corpus = {item.name: item.pattern.replace("CORPUS", entry.corpus) for item in baselines}
    added += [f"baselines.{kind}.{name}={path}" for kind in kinds for name, path in of_corpus.items()]
    added += [f"name={json.dumps(name)}", f"scoring.seeds={json.dumps(config.seeds)}"]
    files = [item for item in items if "=" not in item]
    return load_task(files, [*(item for item in items if "=" in item), *added])


def _claim(config: ExperimentConfig, out: Path) -> None:
    """Write down what this folder is of; refuse a folder of another experiment."""
    path = out / CONFIG_FILE
    text = config.to_json() + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{path}: this folder holds another experiment, or this one with other settings; new --out")
    write_text(path, text)


def _make_untrained(config: ExperimentConfig, arms: list[Arm], corpora: dict[str, Path], out: Path) -> list[Untrained]:
    kinds = list(dict.fromkeys(architecture(arm) for arm in arms))
    found = []
    for number, kind in enumerate(kinds):
        of_kind = [arm for arm in arms if architecture(arm) == kind]
        name = "untrained" if len(kinds) == 1 else f"untrained_{of_kind[0].name}"
        folder = out / "untrained" / f"{number}"
        for seed in config.seeds:
            arm = next(arm for arm in of_kind if arm.seed == seed)
            make_untrained(arm, folder / f"seed-{seed}", config, corpora)
        found.append(Untrained(name, f"{folder}/seed-{{seed}}/features/CORPUS.npz"))
    return found


def _run_task(config: ExperimentConfig, name: str, baselines: list[Untrained], out: Path) -> None:
    task, folder = task_of(config, name, baselines, out), out / "tasks" / name
    key = digest(repr(task), str(config.final), corpus_id(config.corpus(config.tasks[name].corpus, out)))
    once(folder, key, lambda: _evaluate(task, folder, config.final))


def _evaluate(task: TaskConfig, folder: Path, final: bool) -> None:
    run_task(task, folder, final)


def _run_attribution(config: ExperimentConfig, name: str, entry: AttributionEntry, out: Path) -> None:
    folder = out / "attribution" / name
    key = digest(repr(entry), repr(config.tasks[entry.task]), str(config.final))
    once(folder, key, _attribution(config, name, entry, folder, out))


def _attribution(
    config: ExperimentConfig, name: str, entry: AttributionEntry, folder: Path, out: Path
) -> Callable[[], None]:
    def work() -> None:
        from fmri_scale.evaluation.attribution.regions import load_regions
        from fmri_scale.evaluation.attribution.report import save_attribution
        from fmri_scale.evaluation.attribution.runs import RunLibrary
        from fmri_scale.evaluation.attribution.task import AttributionSettings, attribute
        from fmri_scale.release import from_pretrained

        task = task_of(config, entry.task, [], out)
        task.features, task.tokens = {entry.arm: task.features[entry.arm]}, {}
        task.scoring.seeds = task.scoring.seeds[:1]
        task.baselines.bold = ""
        model = from_pretrained(out / "arms" / entry.arm / f"seed-{config.seeds[0]}" / "release")
        labels = config.fill(entry.labels, out) or None
        regions = load_regions(config.fill(entry.atlas, out), labels, model.mask)
        library = RunLibrary(model, config.corpus(config.tasks[entry.task].corpus, out))
        settings = AttributionSettings(entry.method, entry.permutations, entry.clips, final=config.final)
        found = attribute(model, task, library, regions, settings, folder / "test_openings.jsonl")
        save_attribution(found, folder, f"{name}: {entry.task}, {entry.arm}")

    return work


def _report(config: ExperimentConfig, arms: list[Arm], out: Path) -> Path:
    tables = {name: pd.read_csv(out / "tasks" / name / "results.csv") for name in config.tasks}
    results = pd.concat([table.assign(task=name) for name, table in tables.items()], ignore_index=True)
    training = pd.DataFrame([{"arm": arm.name, "seed": arm.seed, **summary(arm)} for arm in arms])
    write_text(out / "results.csv", results.to_csv(index=False))
    write_text(out / "arms.csv", training.to_csv(index=False))
    write_text(out / "report.html", experiment_page(config, tables, training, list(config.attribution)))
    return out / "report.html"
