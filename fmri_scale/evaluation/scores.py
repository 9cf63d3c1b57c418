"""From gathered predictions to the table: every metric of every method with its interval, and paired differences.

The groups of the scored units are resampled once; every method, metric and seed is computed on the same draws, so a
difference between two methods has its own (paired, narrower) interval. The value is the mean over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fmri_scale.errors import DataError
from fmri_scale.evaluation.bootstrap import Interval, Resampling, mean_interval, resample
from fmri_scale.evaluation.compare import Method, Predictions, Units
from fmri_scale.evaluation.metrics import Metric, metrics_of


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
    methods: Sequence[Method],
    units: Units,
    num_draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> ScoreTable:
    """Score every method.

    Raises
    ------
    DataError
        No unit was predicted by all methods, or all are of one group.
    """
    scored = predictions.scored()
    if not scored.any():
        raise DataError("no unit was predicted by every method; look at the counts of missing rows above")
    names, group_index = np.unique(units.group[scored].astype(str), return_inverse=True)
    resampling = resample(len(names), num_draws, seed, level)
    seeds = sorted({seed for _, seed in predictions.scores})
    cells = []
    for metric in metrics_of(units.problem.kind):
        of_method = {
            method.name: _seed_values(metric, predictions, method.name, seeds, scored, units, group_index, resampling)
            for method in methods
        }
        cells += [_score(metric, name, of_method, methods, resampling) for name in of_method]
    order = {method.name: i for i, method in enumerate(methods)}
    cells.sort(key=lambda cell: order[cell.method])
    return ScoreTable(predictions.side, cells, int(scored.sum()), len(names), len(seeds), level, predictions.openings)


def _seed_values(
    metric: Metric,
    predictions: Predictions,
    method: str,
    seeds: Sequence[int],
    scored: np.ndarray,
    units: Units,
    group_index: np.ndarray,
    resampling: Resampling,
) -> tuple[list[float], list[np.ndarray]]:
    """Value and values on the draws, for each seed."""
    truth = units.truth[scored]
    outputs = [predictions.scores[method, seed][scored] for seed in seeds]
    values = [metric.value(truth, output) for output in outputs]
    return values, [resampling.values(metric, truth, output, group_index) for output in outputs]


def _score(
    metric: Metric,
    name: str,
    of_method: Mapping[str, tuple[list[float], list[np.ndarray]]],
    methods: Sequence[Method],
    resampling: Resampling,
) -> Score:
    values, draws = of_method[name]
    against = {}
    for other in methods:
        if other.baseline and other.name != name:
            their_values, their_draws = of_method[other.name]
            differences = [a - b for a, b in zip(values, their_values, strict=True)]
            on_draws = [a - b for a, b in zip(draws, their_draws, strict=True)]
            against[other.name] = mean_interval(resampling, differences, on_draws)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Score(name, metric.name, mean_interval(resampling, values, draws), sd, against)


def predictions_frame(predictions: Predictions, units: Units) -> pd.DataFrame:
    """A row a predicted unit, method and seed: truth, prediction and, for classes, the probability of each."""
    frames = []
    for (method, seed), scores in predictions.scores.items():
        rows = np.flatnonzero(~np.isnan(scores.reshape(len(scores), -1)).any(axis=1))
        columns: dict[str, object] = {"method": method, "seed": seed, "side": predictions.side}
        columns |= {"unit": units.name[rows], "group": units.group[rows], "subject": units.subject[rows]}
        if units.problem.is_class:
            classes = np.array(units.problem.classes, dtype=object)
            columns |= {"truth": classes[units.truth[rows]], "prediction": classes[scores[rows].argmax(axis=1)]}
            columns |= {f"p({name})": scores[rows, k] for k, name in enumerate(units.problem.classes)}
        else:
            columns |= {"truth": units.truth[rows], "prediction": scores[rows]}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
