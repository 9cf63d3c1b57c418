"""Attribution of a task: which regions does a linear head on a model's features use for people it has not seen?

In: a task (units, target, split, one model's features), the release that made them, the runs, and an atlas. The head is
fitted as in the task's linear probe; effects of regions are computed on validation units, or, with `final`, on test
units; the null permutes the truth of these units over groups. Shape suffixes: U units, R regions, E features.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.attribution.effects import gradient_effects, occlusion_effects
from fmri_scale.evaluation.attribution.regions import Regions
from fmri_scale.evaluation.attribution.runs import RunLibrary, check_counts, spread
from fmri_scale.evaluation.attribution.statistic import RegionEvidence, evidence, linear_head, weigh_regions
from fmri_scale.evaluation.compare import Representation, Units, make_part
from fmri_scale.evaluation.probes import LinearProbe, choose_and_fit
from fmri_scale.evaluation.sealed import FIT, VAL, FinalEvaluation, groups_tested
from fmri_scale.evaluation.splits import Fold
from fmri_scale.evaluation.tasks.predict import task_units
from fmri_scale.evaluation.tasks.schema import PREDICTION, TaskConfig
from fmri_scale.evaluation.vectors import ClipVectors
from fmri_scale.log import get_logger
from fmri_scale.release import Pretrained

METHODS = ("occlusion", "gradients")

_log = get_logger(__name__)


@dataclass(frozen=True)
class AttributionSettings:
    """How regions are weighed; ConfigError for a negative number of permutations or clips."""

    method: str = "occlusion"
    "occlusion or gradients."
    permutations: int = 1000
    "Permutations of the truth over groups; 0 gives no p values."
    clips: int = 4
    "Most clips of a unit that are looked at, evenly spread; 0 takes all."
    batch_size: int = 4
    "Clips at a time."
    final: bool = False
    "Weigh on test units instead of validation units."

    def __post_init__(self) -> None:
        check_counts(permutations=self.permutations, clips=self.clips)


@dataclass(frozen=True)
class Attribution:
    """Outcome: evidence by region and by group of regions, and on how many units."""

    regions: Regions
    by_region: RegionEvidence
    group_names: list[str]
    by_group: RegionEvidence
    num_units: int
    side: str


def attribute(
    model: Pretrained,
    task: TaskConfig,
    library: RunLibrary,
    regions: Regions,
    settings: AttributionSettings,
    book: Path | None = None,
) -> Attribution:
    """Weigh regions for a task.

    Parameters
    ----------
    task
        With the features of one model, those that `model` made.
    library
        The runs behind the features.
    book
        Where an opening of the test set is written down.

    Raises
    ------
    DataError
        Features and model, or features and runs, do not belong together, or a fold's held out units are all alike.
    """
    if task.kind not in PREDICTION or len(task.features) != 1:
        raise DataError("attribution needs a classification or regression task with the features of one model")
    prepared = task_units(task)
    source, seed = prepared.sources.features[0], task.scoring.seeds[0]
    clips, units = source.clips[seed], prepared.units
    if clips.release != model.identity:
        raise DataError(f"{clips.source}: made by release {clips.release[:12]}, not by {model.identity[:12]}")
    representation = source.representation(prepared.sources.units)(seed)
    folds = [(fold, _held_groups(fold, settings.final)) for fold in prepared.splits[seed].folds]
    held_rows = [_held_rows(fold, held, units, settings.final) for fold, held in folds]
    penalties = [_penalty(representation, units, fold, seed, task.balanced) for fold, _ in folds]
    if settings.final:
        frozen = {"attribution": settings.method, "penalties": [str(penalty) for penalty in penalties]}
        split = prepared.splits[seed]
        FinalEvaluation(book, split.sha256, frozen, groups_tested([split]))
    found = []
    for (fold, _), rows, penalty in zip(folds, held_rows, penalties, strict=True):
        effects = unit_effects(model, clips, representation, rows, library, regions, settings)
        fit = make_part(FIT, representation, units, fold.fit)
        head = linear_head(fit, units.problem, penalty, seed, task.balanced)
        truth, group = units.truth[rows], units.group[rows]
        weighed = weigh_regions(effects, head, truth, group, units.problem, settings.permutations, seed)
        found.append((weighed, len(rows)))
    by_region = _pooled(found)
    names, statistic = regions.grouped(by_region.statistic)
    _, null = regions.grouped(by_region.null)
    total = sum(count for _, count in found)
    side = "test" if settings.final else "validation"
    return Attribution(regions, by_region, names, evidence(statistic, null), total, side)


def unit_effects(
    model: Pretrained,
    clips: ClipVectors,
    representation: Representation,
    rows: np.ndarray,
    library: RunLibrary,
    regions: Regions,
    settings: AttributionSettings,
) -> np.ndarray:
    """Effects of regions on the features of units, float64 (U, R, E), each the mean over the unit's clips.

    Parameters
    ----------
    representation
        Says which clips belong to which unit.
    rows
        int64 (U,): the units.
    """
    number = {name: i for i, name in enumerate(library.names)}
    method = occlusion_effects if settings.method == "occlusion" else gradient_effects
    out = np.zeros((len(rows), len(regions), model.width))
    for place, unit in enumerate(rows):
        mine = spread(np.flatnonzero(representation.unit == unit), settings.clips)
        for run in dict.fromkeys(clips.run[mine]):
            if run not in number:
                raise DataError(f"run {run} of {clips.source} is not among the runs given, such as {library.names[0]}")
            starts = clips.start_frame[mine[clips.run[mine] == run]]
            with library.open(number[run]) as (coded, _):
                effects = method(model, coded, starts, regions, settings.batch_size)
            out[place] += effects * len(starts) / len(mine)
        _log.info("effects of %d regions: unit %d of %d", len(regions), place + 1, len(rows))
    return out


def _held_groups(fold: Fold, final: bool) -> tuple[str, ...]:
    if final:
        return fold.test
    if len(fold.choices) != 1:
        raise DataError("folds have no validation people of their own; use split.method=holdout, or --final")
    return fold.choices[0].val


def _held_rows(fold: Fold, held: tuple[str, ...], units: Units, final: bool) -> np.ndarray:
    """Units of the groups held out, int64 (U,); DataError where their truth is one and the same."""
    rows = np.flatnonzero(np.isin(units.group, list(held)))
    if len(np.unique(units.truth[rows])) < 2:
        alike = "classes" if units.problem.is_class else "values"
        remedy = "split.method=k_fold with few split.folds" if final else "a larger share in split.fractions"
        raise DataError(
            f"{fold.name}: the {len(rows)} {'test' if final else 'validation'} units do not differ in their truth, "
            f"so no region can speak for it; two or more units of different {alike} are needed: use {remedy}"
        )
    return rows


def _penalty(representation: Representation, units: Units, fold: Fold, seed: int, balanced: bool) -> float:
    pairs = [
        (make_part(FIT, representation, units, choice.train), make_part(VAL, representation, units, choice.val))
        for choice in fold.choices
    ]
    fit = make_part(FIT, representation, units, fold.fit)
    return float(choose_and_fit(LinearProbe(balanced=balanced), pairs, fit, units.problem, seed).setting)


def _pooled(found: list[tuple[RegionEvidence, int]]) -> RegionEvidence:
    """Mean over folds, weighted by their units."""
    total = sum(count for _, count in found)
    statistic = np.sum([item.statistic * count for item, count in found], axis=0) / total
    return evidence(statistic, np.sum([item.null * count for item, count in found], axis=0) / total)
