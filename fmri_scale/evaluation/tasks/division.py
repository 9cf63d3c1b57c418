"""The splits of a task, one a seed, checked against everyone who could stand on two sides."""

from collections.abc import Mapping, Sequence

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.split_file import load_split
from fmri_scale.evaluation.splits import (
    Split,
    by_column,
    check_disjoint,
    holdout,
    k_fold,
    leave_one_out,
    restricted,
    strata_of,
)
from fmri_scale.evaluation.tables import name_some, read_target
from fmri_scale.evaluation.tasks.schema import PREDICTION, SplitConfig, TaskConfig
from fmri_scale.evaluation.tasks.units import UnitTable
from fmri_scale.log import get_logger

_log = get_logger(__name__)

BETWEEN_PEOPLE = ("family", "subject")


def make_splits(
    task: TaskConfig, units: UnitTable, groups: np.ndarray, families: Sequence[np.ndarray], truth: np.ndarray
) -> dict[int, Split]:
    """Divide the groups of a task once for each seed.

    Parameters
    ----------
    groups
        object (n,): group of each unit.
    families
        Family columns; nobody of one family may stand on two sides of a split between people.
    truth
        int64 or float64 (n,): balanced between sides.

    Raises
    ------
    DataError
        The groups cannot be divided so, somebody would stand on two sides, or groups with one label each would be
        left out one by one.
    """
    config = task.split
    if truth.ndim == 1:
        strata = strata_of(groups, truth, task.kind == "classification")
    else:
        strata = dict.fromkeys(sorted(set(groups)), 0)
    splits = {seed: _split(config, units, groups, strata, seed, task) for seed in task.scoring.seeds}
    identities = _identities(config, units, families)
    for split in splits.values():
        check_disjoint(split, groups, identities)
        if task.kind in PREDICTION:
            _refuse_single_labels(split, groups, truth)
    return splits


def _refuse_single_labels(split: Split, groups: np.ndarray, truth: np.ndarray) -> None:
    """Raise DataError where most groups carry one label and each is left out alone.

    Who is left out lacks on the training side: its class is rarer there, its value pulls the mean away. Pooled over
    folds, a model that has learnt nothing then says the opposite of the truth (an AUROC of 0 for the commonest class).
    """
    if len(split.folds) < 2 or any(len(fold.test) > 1 for fold in split.folds):
        return
    single = sum(len(np.unique(truth[groups == fold.test[0]])) < 2 for fold in split.folds)
    if 2 * single > len(split.folds):
        raise DataError(
            f"split.method={split.method} leaves out one {split.level} at a time, but {single} of {len(split.folds)} "
            "carry one label only, and predictions pooled over such folds run against the truth; "
            f"use split.method=k_fold with split.folds={max(2, min(5, len(split.folds) // 2))}"
        )


def _split(
    config: SplitConfig, units: UnitTable, groups: np.ndarray, strata: Mapping[str, int], seed: int, task: TaskConfig
) -> Split:
    if config.method == "holdout":
        return holdout(strata, config.group, config.fractions, config.seed, seed)
    if config.method == "k_fold":
        return k_fold(strata, config.group, config.folds, config.seed + seed)
    if config.method == "leave_one_out":
        return leave_one_out(strata, config.group, config.seed + seed)
    if config.method == "file":
        return _saved(config.file, units, groups)
    return by_column(_sides(task, units, groups), config.group)


def _saved(path: str, units: UnitTable, groups: np.ndarray) -> Split:
    """A split of another task, without the groups that this one lacks; who and how many stands in the notes."""
    split = load_split(path)
    try:
        kept = restricted(split, set(groups))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    absent = sorted(split.groups() - set(groups))
    if absent:
        note = f"{len(absent)} of {len(split.groups())} groups of {path} are not in this task: {name_some(absent)}"
        lost = len(split.folds) - len(kept.folds)
        note += f"; {lost} of its {len(split.folds)} folds test nobody else and are left out" if lost else ""
        if note not in units.notes:  # every seed reads the same file
            units.notes.append(note)
            _log.warning("%s", note)
    return kept


def _sides(task: TaskConfig, units: UnitTable, groups: np.ndarray) -> dict[str, str]:
    """Side of each group by a column of the target table; all of a group must agree."""
    sides: dict[str, str] = {}
    column = read_target(task.target.table, task.split.column, "classification").of(units.entities)
    for group, side in zip(groups, column, strict=True):
        if side is None or sides.setdefault(group, str(side)) != side:
            raise DataError(
                f"{task.target.table}, column {task.split.column}: {group} is {side or 'missing'!r} and "
                f"{sides.get(group, 'missing')!r}; all of a group must be on one side"
            )
    return sides


def _identities(config: SplitConfig, units: UnitTable, families: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    if config.group == "image":
        return {"image": np.array([str(label) for label in units.label], dtype=object)}
    runs = units.entities.names("run")
    if config.group not in BETWEEN_PEOPLE:
        return {"run": runs}
    people = {"subject": units.entities.names("subject"), "run": runs}
    return people | {f"family ({number})": column for number, column in enumerate(families, start=1)}
