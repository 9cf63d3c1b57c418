"""The metrics of many resamplings at once are scikit-learn's with sample weights; intervals hold the truth."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from fmri_scale.errors import DataError
from fmri_scale.evaluation.bootstrap import expanded_tail, resample, spread_of_folds
from fmri_scale.evaluation.metrics import METRICS


def _classes(random: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    truth = random.integers(0, k, n)
    logits = random.normal(size=(n, k)) + 1.2 * np.eye(k)[truth]
    output = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, np.round(output, 1)  # rounding makes ties


SKLEARN = {
    "accuracy": lambda t, o, w: sk.accuracy_score(t, o.argmax(1), sample_weight=w),
    "balanced_accuracy": lambda t, o, w: sk.balanced_accuracy_score(t, o.argmax(1), sample_weight=w),
    "f1": lambda t, o, w: sk.f1_score(t, o.argmax(1), average="macro", sample_weight=w),
    "mae": lambda t, o, w: sk.mean_absolute_error(t, o, sample_weight=w),
    "r2": lambda t, o, w: sk.r2_score(t, o, sample_weight=w),
    "pearson": lambda t, o, w: np.cov(t, o, aweights=w)[0, 1] / np.sqrt(np.prod(np.diag(np.cov(t, o, aweights=w)))),
}


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1"])
def test_resampled_class_metrics_equal_weighted_scikit_learn(name: str, num_classes: int) -> None:
    random = np.random.default_rng(3)
    truth, output = _classes(random, 60, num_classes)
    weights = random.integers(0, 4, (20, 60)).astype(float)
    expected = [SKLEARN[name](truth, output, w) for w in weights]
    np.testing.assert_allclose(METRICS[name].resampled(truth, output, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(METRICS[name].value(truth, output), SKLEARN[name](truth, output, None), rtol=1e-12)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_resampled_auroc_equals_weighted_scikit_learn_with_ties(num_classes: int) -> None:
    random = np.random.default_rng(4)
    truth, output = _classes(random, 60, num_classes)
    weights = random.integers(0, 3, (20, 60)).astype(float)
    columns = [1] if num_classes == 2 else range(num_classes)
    expected = [
        np.mean([sk.roc_auc_score(truth == k, output[:, k], sample_weight=w) for k in columns]) for w in weights
    ]
    np.testing.assert_allclose(METRICS["auroc"].resampled(truth, output, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(
        METRICS["auroc"].value(truth, output), METRICS["auroc"].resampled(truth, output, np.ones((1, 60)))[0]
    )


@pytest.mark.parametrize("name", ["mae", "r2", "pearson"])
def test_resampled_regression_metrics_equal_weighted_scikit_learn(name: str) -> None:
    random = np.random.default_rng(5)
    truth = 40 + 10 * random.normal(size=50)
    output = 0.5 * truth + random.normal(size=50)
    weights = random.integers(0, 4, (20, 50)).astype(float)
    expected = [SKLEARN[name](truth, output, w) for w in weights]
    np.testing.assert_allclose(METRICS[name].resampled(truth, output, weights), expected, rtol=1e-9)


def test_pearson_and_r2_of_a_constant_are_undefined_not_infinite() -> None:
    constant, other = np.full(5, 0.1), np.arange(5.0)
    assert np.isnan(METRICS["pearson"].value(constant, other))
    assert np.isnan(METRICS["pearson"].resampled(constant, other, np.ones((2, 5)))).all()
    assert np.isnan(METRICS["r2"].resampled(constant, other, np.ones((2, 5)))).all()


def test_one_class_leaves_auroc_undefined() -> None:
    truth, output = np.zeros(4, dtype=int), np.full((4, 2), 0.5)
    assert np.isnan(METRICS["auroc"].value(truth, output))


def test_expanded_interval_of_a_mean_is_as_wide_as_students() -> None:
    """For a mean of n values the expanded percentile interval is the t interval: 8 groups need 2.53 normal sd."""
    tail = expanded_tail(8, 0.95)
    assert stats.norm.ppf(tail) == pytest.approx(-np.sqrt(8 / 7) * stats.t.ppf(0.975, 7))
    assert expanded_tail(100_000, 0.95) == pytest.approx(0.025, abs=1e-4)


def _coverage(name: str, num_groups: int, per_group: int, effect: float) -> float:
    """Share of 300 made-up studies whose 95 % interval holds the value in the population."""
    metric, hits = METRICS[name], 0
    truth, output, _ = _study(np.random.default_rng(0), 20_000, per_group, effect, metric.kind)
    population = metric.value(truth, output)
    for study in range(300):
        truth, output, group = _study(np.random.default_rng(1 + study), num_groups, per_group, effect, metric.kind)
        resampling = resample(num_groups, 400, study)
        interval = resampling.interval(metric.value(truth, output), resampling.values(metric, truth, output, group))
        hits += interval.low <= population <= interval.high
    return hits / 300


def _study(
    random: np.random.Generator, groups: int, per_group: int, effect: float, kind: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units of a group share an error, so they are not independent."""
    shared = 0.5 * random.normal(size=(groups, 1)) if per_group > 1 else 0.0
    noise = random.normal(size=(groups, per_group)) + shared
    group = np.repeat(np.arange(groups), per_group)
    if kind == "regression":
        truth = random.normal(size=(groups, per_group))
        return truth.ravel(), (effect * truth + 0.7 * noise).ravel(), group
    truth = random.integers(0, 2, (groups, per_group))
    positive = 1 / (1 + np.exp(-(effect * (truth - 0.5) + noise))).ravel()
    return truth.ravel(), np.stack([1 - positive, positive], axis=1), group


@pytest.mark.parametrize(
    ("name", "num_groups", "per_group", "effect"),
    [
        ("accuracy", 50, 1, 1.5),
        ("balanced_accuracy", 8, 8, 1.5),
        ("auroc", 50, 1, 1.5),
        ("auroc", 50, 1, 0.0),
        ("mae", 30, 3, 0.5),
        ("r2", 50, 1, 0.5),
        ("pearson", 50, 1, 0.0),
    ],
)
def test_intervals_hold_the_truth_about_95_times_of_100(
    name: str, num_groups: int, per_group: int, effect: float
) -> None:
    """A binomial of 300 studies at 95 % lies within 91.7 to 97.7 % in 99 of 100 cases; few groups cost a little."""
    assert 0.90 <= _coverage(name, num_groups, per_group, effect) <= 0.98


def _null_study(random: np.random.Generator, people: int = 80, width: int = 20, folds: int = 5) -> tuple:
    """Truth and cross-validated outputs of a classifier by class means, where there is nothing to be found."""
    truth, inputs = np.arange(people) % 2, random.normal(size=(people, width))
    fold, output = random.permutation(people // 2) % folds, np.empty(people)
    fold = np.repeat(fold, 2)  # a person of each class
    for k in range(folds):
        means = [inputs[(fold != k) & (truth == c)].mean(axis=0) for c in (0, 1)]
        output[fold == k] = (inputs[fold == k] - (means[0] + means[1]) / 2) @ (means[1] - means[0])
    positive = 1 / (1 + np.exp(-output))
    return truth, np.stack([1 - positive, positive], axis=1)


def test_intervals_over_folds_hold_chance_only_when_widened() -> None:
    """Of cross-validated null studies the plain interval misses chance far more often than 5 times of 100."""
    metric, hits = METRICS["auroc"], {1.0: 0, spread_of_folds(5): 0}
    for study in range(300):
        truth, output = _null_study(np.random.default_rng(study))
        for spread in hits:
            resampling = resample(len(truth), 400, study, spread=spread)
            draws = resampling.values(metric, truth, output, np.arange(len(truth)))
            interval = resampling.interval(metric.value(truth, output), draws, metric.limits)
            hits[spread] += interval.low <= 0.5 <= interval.high
    assert hits[1.0] < 0.9 * 300
    assert 0.92 * 300 <= hits[spread_of_folds(5)] <= 0.985 * 300


def test_one_fold_shares_nothing_and_bounds_stay_within_the_metric() -> None:
    assert spread_of_folds(1) == 1
    assert spread_of_folds(5) == 1.5
    resampling = resample(10, 100, 0, spread=3.0)
    interval = resampling.interval(0.95, np.linspace(0.9, 1.0, 100), (0.0, 1.0))
    assert interval.high == 1
    assert interval.low < 0.85


def test_too_few_defined_draws_withhold_the_interval() -> None:
    truth, output = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1]] * 3 + [[0.2, 0.8]])
    resampling = resample(4, 200, 0)
    draws = resampling.values(METRICS["auroc"], truth, output, np.arange(4))
    assert np.isnan(draws).mean() > 0.2  # the only positive is often not drawn
    interval = resampling.interval(1.0, draws)
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


def test_one_group_gives_no_interval() -> None:
    with pytest.raises(DataError, match="two or more"):
        resample(1, 100, 0)
