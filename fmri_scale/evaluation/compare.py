"""Run methods over the folds of splits, and gather what they predict.

A `Method` is a representation (inputs of rows, and the unit of each row) with a probe. For every seed there is a split;
in every fold each method chooses its setting on validation groups and is fitted. Only when all of that is done for all
methods, folds and seeds are the test sets opened (`FinalEvaluation`); without it only validation scores come back.

In: methods, the truth and group of every unit, a split a seed. Out: `Predictions`, a score a unit, method and seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.probes import Chosen, Probe, Problem, Tuner, choose_and_fit, unit_means
from fmri_scale.evaluation.sealed import FIT, TEST, VAL, FinalEvaluation, Part, SealedTest, groups_tested
from fmri_scale.evaluation.splits import Fold, Split
from fmri_scale.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class Representation:
    """What a probe is given.

    Attributes
    ----------
    unit
        int64 (R,): unit of each row; -1 for rows that belong to none.
    take
        Inputs of rows int64 (r,): an array (r, ...) or a list of r arrays.
    """

    unit: np.ndarray
    take: Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes
    ----------
    name
        As printed.
    representation
        By seed; the same object for all where it does not depend on it.
    baseline
        Something that a foundation model must beat.
    """

    name: str
    representation: Callable[[int], Representation]
    probe: Probe | Tuner
    baseline: bool = False


@dataclass(frozen=True)
class Units:
    """What is predicted, n of them.

    Attributes
    ----------
    name, group, subject
        object (n,): the unit, what it may not be divided from, and whose it is.
    truth
        int64 (n,) class numbers or float64 (n,) values; (n, D) vectors for retrieval.
    """

    name: np.ndarray
    group: np.ndarray
    subject: np.ndarray
    truth: np.ndarray
    problem: Problem

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True)
class Predictions:
    """Gathered scores.

    Attributes
    ----------
    side
        test, or val where the test set stayed sealed.
    scores
        (method, seed) to float64 (n, K), (n,) or (n, D), NaN for units not predicted.
    settings
        (method, seed, fold) to the setting chosen.
    openings
        How often the test sets of these splits have been opened, this time included; 0 if they were not.
    """

    side: str
    scores: Mapping[tuple[str, int], np.ndarray]
    settings: Mapping[tuple[str, int, str], Any]
    openings: int

    @property
    def seeds(self) -> list[int]:
        """Seeds, ascending."""
        return sorted({seed for _, seed in self.scores})

    def scored(self, seed: int) -> np.ndarray:
        """bool (n,): units that every method predicted with a seed."""
        held = [scores for (_, s), scores in self.scores.items() if s == seed]
        return np.all([~np.isnan(scores.reshape(len(scores), -1)).any(axis=1) for scores in held], axis=0)


@dataclass(frozen=True)
class _Frozen:
    method: Method
    seed: int
    fold: Fold
    chosen: Chosen
    test: SealedTest


def compare(
    methods: Sequence[Method], units: Units, splits: Mapping[int, Split], final: bool, book: Path | None = None
) -> Predictions:
    """Fit every method on every fold of every seed's split, then predict.

    Parameters
    ----------
    splits
        Seed to split; all over the groups of `units`.
    final
        Open the test sets; else validation scores are returned, which are optimistic because settings were chosen
        by them.
    book
        Where openings are written down.

    Raises
    ------
    DataError
        Groups and splits do not fit, a side of a fold has nobody, or a fold has one class only.
    """
    for split in splits.values():
        lost = set(units.group) - split.groups()
        if lost:
            raise DataError(f"{len(lost)} groups, such as {sorted(lost)[0]!r}, are not in the split; make a new split")
        for fold in split.folds:
            _refuse_empty_sides(fold, set(units.group))
    frozen = []
    for seed, split in splits.items():
        for fold in split.folds:
            _log.info("seed %d, %s: fitting %d methods", seed, fold.name, len(methods))
            frozen += [_freeze(method, units, fold, seed) for method in methods]
    settings = {(item.method.name, item.seed, item.fold.name): item.chosen.setting for item in frozen}
    if not final:
        return Predictions(VAL, _gather_validation(frozen, units), settings, 0)
    text = {" | ".join(map(str, key)): str(value) for key, value in settings.items()}
    hashes = "+".join(split.sha256 for split in splits.values())
    permission = FinalEvaluation(book, hashes, text, groups_tested(splits.values()))
    return Predictions(TEST, _gather_test(frozen, units, permission), settings, permission.openings)


def make_part(side: str, representation: Representation, units: Units, groups: Sequence[str]) -> Part:
    """Rows of the units of some groups."""
    chosen = np.flatnonzero(np.isin(units.group, list(groups)))
    rows = np.flatnonzero(np.isin(representation.unit, chosen))
    unit = representation.unit[rows]
    return Part(side, representation.take(rows), units.truth[unit], unit)


def _refuse_empty_sides(fold: Fold, present: set[str]) -> None:
    sides = {FIT: [fold.fit], VAL: [choice.val for choice in fold.choices], TEST: [fold.test]}
    sides[FIT] += [choice.train for choice in fold.choices]
    for side, parts in sides.items():
        if not parts or any(present.isdisjoint(groups) for groups in parts):
            raise DataError(f"split {fold.name}: nobody of its {side} side has units here; make a new split")


def _freeze(method: Method, units: Units, fold: Fold, seed: int) -> _Frozen:
    representation = method.representation(seed)
    pairs = [
        (make_part(FIT, representation, units, choice.train), make_part(VAL, representation, units, choice.val))
        for choice in fold.choices
    ]
    fit = make_part(FIT, representation, units, fold.fit)
    try:
        if isinstance(method.probe, Tuner):
            chosen = method.probe.tune(fold.name, pairs, fit, units.problem, seed)
        else:
            chosen = choose_and_fit(method.probe, pairs, fit, units.problem, seed)
    except DataError as error:
        raise DataError(f"{method.name}, {fold.name}: {error}") from error
    test = SealedTest(fold.name, lambda: make_part(TEST, representation, units, fold.test))
    return _Frozen(method, seed, fold, chosen, test)


def _gather_test(frozen: Sequence[_Frozen], units: Units, permission: FinalEvaluation) -> dict:
    scores: dict[tuple[str, int], np.ndarray] = {}
    for item in frozen:
        part = item.test.open(permission)
        unit, mean = unit_means(item.chosen.fitted.scores(part.inputs), part.unit)
        scores.setdefault((item.method.name, item.seed), _empty(units))[unit] = mean
    return scores


def _gather_validation(frozen: Sequence[_Frozen], units: Units) -> dict:
    """A unit validated in several folds gets the mean of its scores."""
    found: dict[tuple[str, int], list[Chosen]] = {}
    for item in frozen:
        found.setdefault((item.method.name, item.seed), []).append(item.chosen)
    scores = {}
    for key, chosen in found.items():
        stacked = np.concatenate([item.val_scores for item in chosen])
        unit, mean = unit_means(stacked, np.concatenate([item.val_unit for item in chosen]))
        scores[key] = _empty(units)
        scores[key][unit] = mean
    return scores


def _empty(units: Units) -> np.ndarray:
    shape = (len(units), len(units.problem.classes)) if units.problem.is_class else units.truth.shape
    return np.full(shape, np.nan)
