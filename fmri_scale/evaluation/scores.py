"""From gathered predictions to the table: every metric of every method with its interval, and paired differences.

The groups of the scored units are resampled once; every method, metric and seed is computed on the same draws, so a
difference between two methods has its own (paired, narrower) interval. The value is the mean over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fmri_scale.errors import DataError
from fmri_scale.evaluation.bootstrap import Interval, Resampling, mean_interval, resample, spread_of_folds
from fmri_scale.evaluation.compare import Predictions, Units
from fmri_scale.evaluation.metrics import Metric

RESAMPLING_SEED = 0
"The draws are the same whenever a table is made again."


@dataclass(frozen=True)
class Score:
    """One cell of the table.

    Attributes
    ----------
    interval
        Mean over seeds with its confidence interval over groups.
    seed_sd
        Standard deviation over seeds; 0 with one seed.
    against
        Baseline's name to the interval of (method - baseline).
    """

    method: str
    metric: str
    interval: Interval
    seed_sd: float
    against: Mapping[str, Interval]


@dataclass(frozen=True)
class ScoreTable:
    """All cells, and what they were computed on."""

    side: str
    scores: list[Score]
    num_units: int
    num_groups: int
    num_seeds: int
    level: float
    openings: int
    chance: Mapping[str, float]
    "What guessing gives, by metric, where no method of the table says so."
    spread: float
    "Times as far from their values as draws say lie the bounds, because folds share training sets."

    def get(self, method: str, metric: str) -> Score:
        """The cell of a method and a metric."""
        for score in self.scores:
            if (score.method, score.metric) == (method, metric):
                return score
        raise KeyError(f"{method}, {metric}")

    def frame(self) -> pd.DataFrame:
        """A row a cell, for CSV."""
        rows = []
        for score in self.scores:
            row = {"method": score.method, "metric": score.metric, "value": score.interval.value}
            row |= {"low": score.interval.low, "high": score.interval.high, "seed_sd": score.seed_sd}
            row |= {"side": self.side, "units": self.num_units, "groups": self.num_groups, "seeds": self.num_seeds}
            for name, difference in score.against.items():
                row |= {f"minus {name}": difference.value}
                row |= {f"minus {name} low": difference.low, f"minus {name} high": difference.high}
            rows.append(row)
        return pd.DataFrame(rows)


def score_table(
    predictions: Predictions,
    methods: Mapping[str, bool],
    units: Units,
    metrics: Sequence[Metric],
    num_draws: int = 2000,
    level: float = 0.95,
    chance: Mapping[str, float] | None = None,
    num_folds: int = 1,
) -> ScoreTable:
    """Score every method.

    Parameters
    ----------
    methods
        Name to whether it is a baseline, in the order of the table.
    chance
        What guessing gives, by metric, where no line of the table shows it.
    num_folds
        Folds whose predictions were gathered: intervals are wider for them (`spread_of_folds`).

    Raises
    ------
    DataError
        No unit was predicted by all methods, or all are of one group.
    """
    scored = {seed: predictions.scored(seed) for seed in predictions.seeds}
    if not all(rows.any() for rows in scored.values()):
        raise DataError("no unit was predicted by every method; look at the counts of missing rows above")
    anywhere = np.any(list(scored.values()), axis=0)
    names, group_index = np.unique(units.group[anywhere].astype(str), return_inverse=True)
    group_of = np.zeros(len(units), dtype=np.int64)
    group_of[anywhere] = group_index
    resampling = resample(len(names), num_draws, RESAMPLING_SEED, level, spread_of_folds(num_folds))
    cells = []
    for metric in metrics:
        of_method = {
            name: _seed_values(metric, predictions, name, scored, units, group_of, resampling) for name in methods
        }
        cells += [_score(metric, name, of_method, methods, resampling) for name in of_method]
    order = {name: i for i, name in enumerate(methods)}
    cells.sort(key=lambda cell: order[cell.method])
    return ScoreTable(
        predictions.side,
        cells,
        int(anywhere.sum()),
        len(names),
        len(scored),
        level,
        predictions.openings,
        chance or {},
        resampling.spread,
    )


def _seed_values(
    metric: Metric,
    predictions: Predictions,
    method: str,
    scored: Mapping[int, np.ndarray],
    units: Units,
    group_of: np.ndarray,
    resampling: Resampling,
) -> tuple[list[float], list[np.ndarray]]:
    """Value and values on the draws, for each seed."""
    values, draws = [], []
    for seed, rows in scored.items():
        truth, output = units.truth[rows], predictions.scores[method, seed][rows]
        values.append(metric.value(truth, output))
        draws.append(resampling.values(metric, truth, output, group_of[rows]))
    return values, draws


def _score(
    metric: Metric,
    name: str,
    of_method: Mapping[str, tuple[list[float], list[np.ndarray]]],
    methods: Mapping[str, bool],
    resampling: Resampling,
) -> Score:
    values, draws = of_method[name]
    against = {}
    for other, is_baseline in methods.items():
        if is_baseline and other != name:
            their_values, their_draws = of_method[other]
            differences = [a - b for a, b in zip(values, their_values, strict=True)]
            on_draws = [a - b for a, b in zip(draws, their_draws, strict=True)]
            against[other] = mean_interval(resampling, differences, on_draws)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Score(name, metric.name, mean_interval(resampling, values, draws, metric.limits), sd, against)


def predictions_frame(predictions: Predictions, units: Units) -> pd.DataFrame:
    """A row a predicted unit, method and seed: truth, prediction and the probability of each class; or its rank."""
    frames = []
    for (method, seed), scores in predictions.scores.items():
        rows = np.flatnonzero(~np.isnan(scores.reshape(len(scores), -1)).any(axis=1))
        columns: dict[str, object] = {"method": method, "seed": seed, "side": predictions.side}
        columns |= {"unit": units.name[rows], "group": units.group[rows], "subject": units.subject[rows]}
        if units.problem.is_class:
            classes = np.array(units.problem.classes, dtype=object)
            columns |= {"truth": classes[units.truth[rows]], "prediction": classes[scores[rows].argmax(axis=1)]}
            columns |= {f"p({name})": scores[rows, k] for k, name in enumerate(units.problem.classes)}
        elif scores.ndim == 1:
            columns |= {"truth": units.truth[rows], "prediction": scores[rows]}
        else:
            columns |= {"gallery": units.truth[rows], "rank": scores[rows, 0], "average_precision": scores[rows, 1]}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
