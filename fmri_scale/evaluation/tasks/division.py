"""The splits of a task, one a seed, checked against everyone who could stand on two sides."""

from collections.abc import Mapping, Sequence

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.split_file import load_split
from fmri_scale.evaluation.splits import Split, by_column, check_disjoint, holdout, k_fold, leave_one_out, strata_of
from fmri_scale.evaluation.tables import read_target
from fmri_scale.evaluation.tasks.schema import SplitConfig, TaskConfig
from fmri_scale.evaluation.tasks.units import UnitTable

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
        The groups cannot be divided so, or somebody would stand on two sides.
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
    return splits


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
        return load_split(config.file)
    return by_column(_sides(task, units, groups), config.group)


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
