"""Classification and regression: probes and baselines on the same units, splits and draws."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.compare import Units, compare
from fmri_scale.evaluation.metrics import metrics_of
from fmri_scale.evaluation.probes import Problem
from fmri_scale.evaluation.scores import predictions_frame, score_table
from fmri_scale.evaluation.splits import Split, num_folds
from fmri_scale.evaluation.tables import classes_of
from fmri_scale.evaluation.tasks.division import make_splits
from fmri_scale.evaluation.tasks.methods import Sources, prediction_methods, read_sources
from fmri_scale.evaluation.tasks.result import TaskResult
from fmri_scale.evaluation.tasks.schema import TaskConfig
from fmri_scale.evaluation.tasks.tuned import tuned_methods


@dataclass(frozen=True)
class Prepared:
    """A task before anything is fitted: sources, units with their truth, and a split a seed."""

    sources: Sources
    units: Units
    splits: dict[int, Split]


def task_units(task: TaskConfig) -> Prepared:
    """Read a classification or regression task and divide its units."""
    sources = read_sources(task)
    table = sources.units
    problem = _problem(task, table.label)
    truth = _truth(problem, table.label)
    families = table.families(task.target)
    groups = table.groups(task.split.group, families)
    units = Units(table.name, groups, table.entities.names("subject"), truth, problem)
    return Prepared(sources, units, make_splits(task, table, groups, families, truth))


def predict(task: TaskConfig, final: bool, book: Path) -> TaskResult:
    """Run a classification or regression task.

    Parameters
    ----------
    final
        Open the test sets.
    book
        Where openings are written down; tuned models are kept beside it.
    """
    prepared = task_units(task)
    units, splits, sources = prepared.units, prepared.splits, prepared.sources
    outputs = len(units.problem.classes) if units.problem.is_class else 1
    tuned, shares = tuned_methods(task, sources.tuned, sources.units, outputs, book.parent)
    methods = prediction_methods(task, sources, tuned)
    predictions = compare(methods, units, splits, final, book)
    lines = {method.name: method.baseline for method in methods}
    metrics, scoring = metrics_of(task.kind), task.scoring
    folds = num_folds(splits)
    scores = score_table(predictions, lines, units, metrics, scoring.draws, scoring.level, num_folds=folds)
    frame, notes = predictions_frame(predictions, units), [*sources.units.notes, *shares]
    return TaskResult(task, scores, frame, splits, predictions.settings, notes)


def _problem(task: TaskConfig, labels: list[str | float | None]) -> Problem:
    if task.kind == "regression":
        return Problem("regression")
    classes = classes_of(labels)
    if len(classes) < 2:
        raise DataError(f"every unit is of class {classes[0]!r}; a classification needs two or more")
    if len(classes) > len(labels) / 2:
        raise DataError(f"{len(classes)} classes among {len(labels)} units; is this a regression?")
    return Problem("classification", tuple(classes))


def _truth(problem: Problem, labels: list[str | float | None]) -> np.ndarray:
    if problem.is_class:
        number = {name: k for k, name in enumerate(problem.classes)}
        return np.array([number[str(label)] for label in labels], dtype=np.int64)
    return np.array(labels, dtype=np.float64)
