"""Metrics of gathered predictions: the value by scikit-learn, and the same under many resamplings at once.

A `Metric` has two faces. `value(truth, output)` is scikit-learn's own figure (scipy's for Pearson). `resampled(truth,
output, weights)` gives, for R rows of unit weights, the figure that scikit-learn would give with these sample weights;
it exists because a bootstrap needs thousands of them, and is held to scikit-learn's by a test.

In: `truth` int64 (n,) class numbers or float64 (n,) values; `output` float64 (n, K) class probabilities or (n,) values.
Predictions of all folds and ranks are gathered before any of this; nothing is averaged over batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn import metrics as sk

CLASSIFICATION, REGRESSION, RANKING = "classification", "regression", "ranking"


class Metric(NamedTuple):
    """A figure of merit.

    Attributes
    ----------
    name, kind
        `kind` is classification, regression or ranking (output (n, 2): rank and average precision).
    larger_is_better
        False for errors.
    value
        (truth, output) -> float; NaN where it is not defined (one class only, a constant).
    resampled
        (truth, output, weights (R, n)) -> float64 (R,); NaN where a resampling leaves it undefined.
    limits
        Least and largest value it can have.
    """

    name: str
    kind: str
    larger_is_better: bool
    value: Callable[[np.ndarray, np.ndarray], float]
    resampled: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    limits: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Confusion:
    """Weighted counts per resampling, each float64 (R, K): `true`, `predicted` and `both` of every class."""

    true: np.ndarray
    predicted: np.ndarray
    both: np.ndarray


def _confusion(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> Confusion:
    classes = np.arange(output.shape[1])
    is_true = (truth[:, None] == classes).astype(np.float64)
    is_predicted = (output.argmax(axis=1)[:, None] == classes).astype(np.float64)
    return Confusion(weights @ is_true, weights @ is_predicted, weights @ (is_true * is_predicted))


def _accuracy(truth: np.ndarray, output: np.ndarray) -> float:
    return float(sk.accuracy_score(truth, output.argmax(axis=1)))


def _accuracies(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> np.ndarray:
    correct = (output.argmax(axis=1) == truth).astype(np.float64)
    return _ratio(weights @ correct, weights.sum(axis=1))


def _balanced_accuracy(truth: np.ndarray, output: np.ndarray) -> float:
    classes = np.unique(truth)
    return float(sk.recall_score(truth, output.argmax(axis=1), labels=classes, average="macro"))


def _balanced_accuracies(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = _confusion(truth, output, weights)
    return _mean_over_classes(_ratio(counts.both, counts.true))


def _f1(truth: np.ndarray, output: np.ndarray) -> float:
    labels = np.arange(output.shape[1])
    return float(sk.f1_score(truth, output.argmax(axis=1), labels=labels, average="macro", zero_division=np.nan))


def _f1s(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = _confusion(truth, output, weights)
    return _mean_over_classes(_ratio(2 * counts.both, counts.true + counts.predicted))


def _auroc(truth: np.ndarray, output: np.ndarray) -> float:
    """Area under the ROC curve; with more than two classes the mean over one-against-rest curves."""
    areas = [
        float(sk.roc_auc_score(truth == k, output[:, k])) if 0 < np.count_nonzero(truth == k) < len(truth) else np.nan
        for k in _scored_classes(output)
    ]
    return float(_mean_over_classes(np.array([areas]))[0])


def _aurocs(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> np.ndarray:
    areas = [_areas(truth == k, output[:, k], weights) for k in _scored_classes(output)]
    return _mean_over_classes(np.stack(areas, axis=1))


def _scored_classes(output: np.ndarray) -> range:
    return range(1, 2) if output.shape[1] == 2 else range(output.shape[1])


def _areas(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(score of a positive > that of a negative) + half of ties, under weights (R, n)."""
    order = np.argsort(score, kind="stable")
    new_value = np.flatnonzero(np.diff(score[order], prepend=np.nan))  # NaN differs from all: the first always starts
    on_positive = np.add.reduceat(weights[:, order] * positive[order], new_value, axis=1)
    on_negative = np.add.reduceat(weights[:, order] * ~positive[order], new_value, axis=1)
    below = on_negative.cumsum(axis=1) - on_negative / 2
    return _ratio((on_positive * below).sum(axis=1), on_positive.sum(axis=1) * on_negative.sum(axis=1))


def _mae(truth: np.ndarray, output: np.ndarray) -> float:
    return float(sk.mean_absolute_error(truth, output))


def _maes(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ np.abs(truth - output), weights.sum(axis=1))


def _r2(truth: np.ndarray, output: np.ndarray) -> float:
    return float(sk.r2_score(truth, output)) if np.ptp(truth) > 0 else np.nan


def _r2s(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> np.ndarray:
    centred = truth - truth.mean()  # sums of squares of far-off values would lose their digits
    total = weights.sum(axis=1)
    spread = weights @ centred**2 - (weights @ centred) ** 2 / total
    return 1 - _ratio(weights @ (truth - output) ** 2, _or_zero(spread, weights @ centred**2))


def _pearson(truth: np.ndarray, output: np.ndarray) -> float:
    constant = np.ptp(truth) == 0 or np.ptp(output) == 0
    return np.nan if constant else float(stats.pearsonr(truth, output).statistic)


def _pearsons(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> np.ndarray:
    a, b, total = truth - truth.mean(), output - output.mean(), weights.sum(axis=1)
    cross = weights @ (a * b) - (weights @ a) * (weights @ b) / total
    of_a = _or_zero(weights @ a**2 - (weights @ a) ** 2 / total, weights @ a**2)
    of_b = _or_zero(weights @ b**2 - (weights @ b) ** 2 / total, weights @ b**2)
    return _ratio(cross, np.sqrt(of_a * of_b))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _or_zero(spread: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A sum of squared deviations with what is only rounding set to 0."""
    return np.where(spread > 1e-12 * scale, spread, 0.0)


def _mean_over_classes(per_class: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(per_class)
    return _ratio(np.where(defined, per_class, 0.0).sum(axis=-1), defined.sum(axis=-1))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", CLASSIFICATION, True, _accuracy, _accuracies),
        Metric("balanced_accuracy", CLASSIFICATION, True, _balanced_accuracy, _balanced_accuracies),
        Metric("auroc", CLASSIFICATION, True, _auroc, _aurocs),
        Metric("f1", CLASSIFICATION, True, _f1, _f1s),
        Metric("mae", REGRESSION, False, _mae, _maes, (0.0, np.inf)),
        Metric("r2", REGRESSION, True, _r2, _r2s, (-np.inf, 1.0)),
        Metric("pearson", REGRESSION, True, _pearson, _pearsons, (-1.0, 1.0)),
    )
}
"Every metric by name, in the order of the report's columns. Multi-class AUROC and F1 are means over classes."


def metrics_of(kind: str) -> list[Metric]:
    """Metrics for classification or regression."""
    return [metric for metric in METRICS.values() if metric.kind == kind]


def top_k_metric(k: int) -> Metric:
    """Share of queries whose first right answer is among the first k."""
    return _mean_metric(f"top{k}", lambda output: output[:, 0] <= k)


def precision_metric() -> Metric:
    """Mean average precision."""
    return _mean_metric("map", lambda output: output[:, 1])


def median_rank_metric() -> Metric:
    """Median place of the first right answer (the lower median)."""

    def resampled(truth: np.ndarray, output: np.ndarray, weights: np.ndarray) -> np.ndarray:
        order = np.argsort(output[:, 0], kind="stable")
        below = weights[:, order].cumsum(axis=1)
        return output[order, 0][(below >= below[:, -1:] / 2).argmax(axis=1)]

    def value(truth: np.ndarray, output: np.ndarray) -> float:
        return float(resampled(truth, output, np.ones((1, len(output))))[0])

    return Metric("median_rank", RANKING, False, value, resampled, (1.0, np.inf))


def _mean_metric(name: str, of: Callable[[np.ndarray], np.ndarray]) -> Metric:
    return Metric(
        name,
        RANKING,
        True,
        lambda truth, output: float(of(output).mean()),
        lambda truth, output, weights: _ratio(weights @ of(output).astype(np.float64), weights.sum(axis=1)),
    )
