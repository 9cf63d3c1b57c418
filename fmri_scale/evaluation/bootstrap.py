"""Confidence intervals by resampling groups (families, subjects, or the runs of one subject).

Units of one group are never independent, so whole groups are drawn with replacement. One `Resampling` is shared by
all methods of a table: differences between methods are then paired, unit by unit.

The interval is the expanded percentile interval (Hesterberg, What Teachers Should Know About the Bootstrap, 2015:
percentiles at Phi(-sqrt(n / (n - 1)) t) in place of alpha / 2). Measured on made-up scores with 8 groups of 8 units it
holds the truth in 91 to 96 % of cases, the plain percentile interval in 84 to 91 %, BCa in 84 to 91 %; with 50 groups
all three hold it in 91 to 97 %. Training is taken as it is: the interval is about new subjects, not new training sets.

Predictions gathered over the folds of a cross-validation come from models that share most of their training sets, and
what one fold tests the others train on; the draws do not see that. Bounds are then moved away from the value by
`spread_of_folds` (Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003, section 3).
Measured on 120 made-up studies each of 40 to 160 people, logistic regression on 64 features, 5 and 8 folds, with an
effect and without: the interval of the AUROC holds its mean over training sets in 94 to 98 %, unwidened in 82 to 87 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fmri_scale.errors import DataError
from fmri_scale.evaluation.metrics import Metric

BATCH_VALUES = 4_000_000
"Weights made at a time (float64), so that memory does not grow with the number of draws."

MAX_UNDEFINED = 0.05
"Largest share of draws on which a metric may be undefined before its interval is withheld."


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN bounds where too few draws define the metric."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampling:
    """How often each group is drawn.

    Attributes
    ----------
    counts
        int64 (R, G).
    level
        Confidence level, for example 0.95.
    spread
        Times as far from the value as the draws say lie the bounds; see `spread_of_folds`.
    """

    counts: np.ndarray
    level: float
    spread: float = 1.0

    @property
    def num_groups(self) -> int:
        """G."""
        return self.counts.shape[1]

    def values(self, metric: Metric, truth: np.ndarray, output: np.ndarray, group_index: np.ndarray) -> np.ndarray:
        """The metric on every draw, float64 (R,); `group_index` int64 (n,) says each unit's group."""
        rows = max(1, BATCH_VALUES // max(1, len(truth)))
        parts = [
            metric.resampled(truth, output, self.counts[start : start + rows, group_index].astype(np.float64))
            for start in range(0, len(self.counts), rows)
        ]
        return np.concatenate(parts)

    def interval(
        self, value: float, draws: np.ndarray, limits: tuple[float, float] = (-math.inf, math.inf)
    ) -> Interval:
        """Confidence interval from the values on the draws, within what the metric can be."""
        defined = draws[~np.isnan(draws)]
        if np.isnan(value) or len(defined) < (1 - MAX_UNDEFINED) * len(draws):
            return Interval(value, np.nan, np.nan)
        tail = expanded_tail(self.num_groups, self.level)
        bounds = value + self.spread * (np.quantile(defined, [tail, 1 - tail]) - value)
        low, high = np.clip(bounds, *limits)
        return Interval(value, float(low), float(high))


def resample(num_groups: int, num_draws: int, seed: int, level: float = 0.95, spread: float = 1.0) -> Resampling:
    """Draw groups with replacement.

    Raises
    ------
    DataError
        Fewer than two groups: nothing can be said about a third.
    """
    if num_groups < 2:
        raise DataError(f"{num_groups} test group: an interval needs two or more; test on more subjects (or runs)")
    random = np.random.default_rng(seed)
    counts = random.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=num_draws)
    return Resampling(counts, level, spread)


def expanded_tail(num_groups: int, level: float) -> float:
    """Share of draws beyond each end of the interval."""
    quantile = stats.t.ppf((1 + level) / 2, num_groups - 1)
    return float(stats.norm.cdf(-math.sqrt(num_groups / (num_groups - 1)) * quantile))


def spread_of_folds(num_folds: int) -> float:
    """How much farther from a cross-validated value its bounds lie than draws of its predictions say.

    The variance of a mean over J folds is (1 / J + n_test / n_train) of that of one fold, not 1 / J of it. One fold
    shares nothing.
    """
    return math.sqrt(1 + num_folds / (num_folds - 1)) if num_folds > 1 else 1.0


def mean_interval(
    resampling: Resampling,
    values: Sequence[float],
    draws: Sequence[np.ndarray],
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Interval of the mean over seeds, each with its value and its values on the same draws."""
    return resampling.interval(float(np.mean(values)), np.mean(draws, axis=0), limits)
