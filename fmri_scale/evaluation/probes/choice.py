"""How a probe's setting is chosen: the least loss on validation groups, then a fit on the fit groups.

In: for one fold, pairs of train and validation parts, and the fit part. Out: the fitted model, its setting, and what
it predicted on validation. The loss is the Brier score (classes) or the squared error (values) of units, that is after
the scores of a unit's clips are averaged: both are proper and finite, unlike accuracy on few units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.metrics import CLASSIFICATION
from fmri_scale.evaluation.sealed import Part, refuse_test


class Problem(NamedTuple):
    """What is predicted: `kind` classification or regression, and the names of the classes."""

    kind: str
    classes: tuple[str, ...] = ()

    @property
    def is_class(self) -> bool:
        """Classification."""
        return self.kind == CLASSIFICATION


class Fitted(Protocol):
    """A fitted model."""

    def scores(self, inputs: Any) -> np.ndarray:
        """Class probabilities float64 (R, K), or values (R,)."""
        ...


class Probe(Protocol):
    """A family of models on given inputs; `settings` run from the simplest model to the most flexible."""

    name: str
    settings: tuple[Any, ...]

    def fit(self, part: Part, problem: Problem, settings: Sequence[Any], seed: int) -> list[Fitted]:
        """Fit one model a setting."""
        ...


@runtime_checkable
class Tuner(Protocol):
    """A family of models that chooses for itself, because its settings and its fit cannot be told apart."""

    name: str

    def tune(self, fold: str, choices: Sequence[tuple[Part, Part]], fit: Part, problem: Problem, seed: int) -> "Chosen":
        """Choose by train and validation parts, and fit; `fold` is its name."""
        ...


@dataclass(frozen=True)
class Chosen:
    """A fitted model with the setting that validation preferred.

    Attributes
    ----------
    losses
        Mean validation loss of each setting tried.
    val_unit, val_scores
        Units validated on, and the chosen setting's scores for them (each by a model that had not seen them).
    """

    fitted: Fitted
    setting: Any
    losses: tuple[float, ...]
    val_unit: np.ndarray
    val_scores: np.ndarray


def choose_and_fit(
    probe: Probe, choices: Sequence[tuple[Part, Part]], fit: Part, problem: Problem, seed: int
) -> Chosen:
    """Choose a setting on validation parts and fit it.

    Parameters
    ----------
    choices
        Train and validation parts, in pairs.
    fit
        Rows that the final model is fitted on.

    Raises
    ------
    DataError
        The rows to fit on hold one class only.
    """
    losses, scores, units = [], [], []
    for train, val in choices:
        models = fit_checked(probe, train, problem, probe.settings, seed)
        refuse_test(val)
        scored = [unit_means(model.scores(val.inputs), val.unit)[1] for model in models]
        losses.append([unit_losses(val, score, problem) for score in scored])
        scores.append(scored)
        units.append(np.unique(val.unit))
    per_setting = [np.concatenate([pair[i] for pair in losses]).mean() for i in range(len(probe.settings))]
    best = int(np.argmin(per_setting))
    fitted = fit_checked(probe, fit, problem, [probe.settings[best]], seed)[0]
    return Chosen(
        fitted,
        probe.settings[best],
        tuple(float(loss) for loss in per_setting),
        np.concatenate(units),
        np.concatenate([scored[best] for scored in scores]),
    )


def fit_checked(probe: Probe, part: Part, problem: Problem, settings: Sequence[Any], seed: int) -> list[Fitted]:
    """Fit a probe on rows that may be fitted on and that hold something to learn."""
    check_rows(part, problem)
    return probe.fit(part, problem, settings, seed)


def check_rows(part: Part, problem: Problem) -> None:
    """Raise unless rows may be fitted on (RuntimeError for test rows) and hold two classes or more (DataError)."""
    refuse_test(part)
    if problem.is_class and len(np.unique(part.truth)) < 2:
        found = problem.classes[int(part.truth[0])] if len(part.truth) else "nothing"
        raise DataError(f"the rows to train on hold one class only ({found}); split otherwise or use more subjects")


def unit_means(scores: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the scores of each unit's rows.

    Returns
    -------
    unit, mean
        int64 (U,) sorted, and float64 (U,) or (U, K).
    """
    names, which = np.unique(unit, return_inverse=True)
    total = np.zeros((len(names), *scores.shape[1:]))
    np.add.at(total, which, scores)
    rows = np.bincount(which).reshape(-1, *[1] * (scores.ndim - 1))
    return names, total / rows


def unit_losses(part: Part, scores: np.ndarray, problem: Problem) -> np.ndarray:
    """Brier score or squared error of each unit of a part, float64 (U,), of scores averaged over its rows."""
    truth = part.truth[np.unique(part.unit, return_index=True)[1]]
    if problem.is_class:
        return ((scores - np.eye(len(problem.classes))[truth]) ** 2).sum(axis=1)
    return ((scores - truth) ** 2).reshape(len(truth), -1).mean(axis=1)
