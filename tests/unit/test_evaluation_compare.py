"""Probes on made-up features with known truth: what is there is found, nothing is found where nothing is, and the
test set stays shut until everything is fitted."""

import json
from pathlib import Path

import numpy as np
import pytest

from fmri_scale.errors import DataError
from fmri_scale.evaluation.compare import Method, Predictions, Representation, Units, compare
from fmri_scale.evaluation.metrics import metrics_of
from fmri_scale.evaluation.probes import (
    AttentiveProbe,
    ConstantProbe,
    LinearProbe,
    NeighbourProbe,
    Probe,
    Problem,
    choose_and_fit,
    unit_means,
)
from fmri_scale.evaluation.scores import ScoreTable, predictions_frame, score_table
from fmri_scale.evaluation.sealed import FIT, TEST, VAL, FinalEvaluation, Part, SealedTest, groups_tested
from fmri_scale.evaluation.splits import Choice, Fold, Split, holdout, k_fold, strata_of

CLASSES = Problem("classification", ("control", "patient"))
VALUES = Problem("regression")


class Recorded:
    """Vectors that remember which rows were read."""

    def __init__(self, vectors: np.ndarray, unit: np.ndarray) -> None:
        self.vectors, self.unit, self.read = vectors, unit, set[int]()

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.read.update(int(row) for row in rows)
        return self.vectors[rows]

    def representation(self, seed: int = 0) -> Representation:
        return Representation(self.unit, self.take)


def _cohort(num: int, effect: float, seed: int, clips: int = 3, width: int = 12) -> tuple[Recorded, Units]:
    """Subjects of two classes, `clips` rows each; the first column is shifted by the class."""
    random = np.random.default_rng(seed)
    truth = random.permutation(np.arange(num) % 2)
    unit = np.repeat(np.arange(num), clips)
    vectors = random.normal(size=(num, width))[unit] + 0.5 * random.normal(size=(num * clips, width))
    vectors[:, 0] += effect * truth[unit]
    return Recorded(vectors, unit), _units(truth, CLASSES)


def _units(truth: np.ndarray, problem: Problem) -> Units:
    names = np.array([f"d/sub-{i:03d}" for i in range(len(truth))], dtype=object)
    return Units(names, names, names, truth, problem)


def _split(units: Units, seed: int = 0) -> Split:
    return holdout(strata_of(units.group, units.truth, units.problem.is_class), "subject", seed=seed)


def _methods(data: Recorded, probe: Probe | None = None) -> list[Method]:
    constant = Representation(np.arange(data.unit.max() + 1), lambda rows: np.zeros((len(rows), 1)))
    return [
        Method("features", data.representation, probe or LinearProbe()),
        Method("majority", lambda seed: constant, ConstantProbe(), baseline=True),
    ]


def _table(predictions: Predictions, methods: list[Method], units: Units, draws: int) -> ScoreTable:
    lines = {method.name: method.baseline for method in methods}
    return score_table(predictions, lines, units, metrics_of(units.problem.kind), draws)


def test_planted_effect_is_found_beyond_the_baseline() -> None:
    data, units = _cohort(300, 2.0, 0)
    methods = _methods(data)
    table = _table(compare(methods, units, {0: _split(units)}, final=True), methods, units, 500)
    score = table.get("features", "auroc")
    assert score.interval.low > 0.6
    assert score.against["majority"].low > 0.1
    assert table.get("majority", "auroc").interval.value == 0.5
    assert table.get("majority", "balanced_accuracy").interval.value == 0.5


def test_null_cohorts_give_chance() -> None:
    """Of 40 cohorts without an effect the 95 % interval holds 0.5 in about 38; values scatter about 0.5."""
    values, hits = [], 0
    for seed in range(40):
        data, units = _cohort(100, 0.0, seed, clips=2, width=6)
        methods = _methods(data)[:1]
        split = holdout(strata_of(units.group, units.truth, True), "subject", (0.3, 0.2, 0.5), seed)
        interval = _table(compare(methods, units, {0: split}, final=True), methods, units, 300).get(
            "features", "balanced_accuracy"
        )
        values.append(interval.interval.value)
        hits += interval.interval.low <= 0.5 <= interval.interval.high
    assert hits >= 34
    assert abs(np.mean(values) - 0.5) < 0.03


def test_regression_recovers_a_known_correlation() -> None:
    random = np.random.default_rng(2)
    vectors = random.normal(size=(400, 5))
    age = 50 + 10 * (0.6 * vectors[:, 0] + 0.8 * random.normal(size=400))
    data, units = Recorded(vectors, np.arange(400)), _units(age, VALUES)
    methods = _methods(data)
    table = _table(compare(methods, units, {0: _split(units)}, final=True), methods, units, 500)
    assert table.get("features", "pearson").interval.low <= 0.6 <= table.get("features", "pearson").interval.high
    assert table.get("features", "mae").against["majority"].high < 0  # the error is smaller than the mean's
    assert abs(table.get("majority", "r2").interval.value) < 0.1


def test_the_test_set_is_not_read_before_the_final_evaluation(tmp_path: Path) -> None:
    data, units = _cohort(60, 1.0, 1)
    split, book = _split(units), tmp_path / "openings.jsonl"
    test_rows = set(np.flatnonzero(np.isin(units.group[data.unit], split.folds[0].test)))
    predictions = compare(_methods(data), units, {0: split}, final=False, book=book)
    assert predictions.side == "val"
    assert not data.read & test_rows
    assert not book.exists()
    for opening in (1, 2):
        assert compare(_methods(data), units, {0: split}, final=True, book=book).openings == opening
    assert test_rows <= data.read
    assert json.loads(book.read_text().splitlines()[0])["frozen"]["features | 0 | holdout"]


def test_a_test_set_opens_for_nothing_but_a_final_evaluation() -> None:
    sealed = SealedTest("fold 1", lambda: pytest.fail("the seal was broken"))
    with pytest.raises(DataError, match="test set of fold 1 is sealed"):
        sealed.open(True)  # type: ignore[arg-type]


def test_test_rows_are_refused_by_everything_that_fits() -> None:
    part = Part(TEST, np.zeros((4, 2)), np.array([0, 1, 0, 1]), np.arange(4))
    train = Part(FIT, np.random.default_rng(0).normal(size=(4, 2)), np.array([0, 1, 0, 1]), np.arange(4))
    with pytest.raises(RuntimeError, match="must not be fitted"):
        choose_and_fit(LinearProbe(), [(train, train)], part, CLASSES, 0)
    with pytest.raises(RuntimeError, match="must not be fitted"):
        choose_and_fit(LinearProbe(), [(train, part)], train, CLASSES, 0)


@pytest.mark.parametrize("probe", [LinearProbe(), NeighbourProbe(), LinearProbe(balanced=True)])
def test_what_is_fitted_depends_on_training_subjects_only(probe: Probe) -> None:
    """Test and validation rows are replaced by absurd ones: statistics and weights stay the same bit for bit."""
    data, units = _cohort(40, 1.5, 3)
    train = np.flatnonzero(data.unit < 24)
    rest = np.flatnonzero(data.unit >= 24)
    probe_rows = np.random.default_rng(9).normal(size=(30, 12))
    outputs = []
    for scale in (1.0, 1e6):
        vectors = data.vectors.copy()
        vectors[rest] = scale * vectors[rest] + scale
        fit = Part(FIT, vectors[train], units.truth[data.unit[train]], data.unit[train])
        outputs.append(probe.fit(fit, CLASSES, probe.settings[3:4], 0)[0].scores(probe_rows))
    np.testing.assert_array_equal(*outputs)


def test_the_setting_is_chosen_on_validation_alone() -> None:
    """Validation labels decide the setting; the labels of the test units, whatever they are, do not."""
    data, units = _cohort(80, 1.0, 4)
    split = _split(units)
    flipped = units.truth.copy()
    on_test = np.isin(units.group, split.folds[0].test)
    flipped[on_test] = 1 - flipped[on_test]
    other = Units(units.name, units.group, units.subject, flipped, units.problem)
    one = compare(_methods(data), units, {0: split}, final=True)
    two = compare(_methods(data), other, {0: split}, final=True)
    assert one.settings == two.settings
    np.testing.assert_array_equal(one.scores["features", 0], two.scores["features", 0])


def test_clips_of_a_unit_are_averaged_and_count_as_one() -> None:
    unit, mean = unit_means(np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.8]]), np.array([7, 7, 3]))
    assert unit.tolist() == [3, 7]
    np.testing.assert_allclose(mean, [[0.2, 0.8], [0.5, 0.5]])
    part = Part(FIT, np.zeros((4, 1)), np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(part.weight, [2 / 3, 2 / 3, 2 / 3, 2])


def test_a_long_run_weighs_no_more_than_a_short_one() -> None:
    """Repeating the clips of one subject leaves the fitted model as it was."""
    random = np.random.default_rng(5)
    vectors, truth = random.normal(size=(20, 4)), np.arange(20) % 2
    vectors[:, 1] += truth
    repeated = np.concatenate([np.arange(20), np.zeros(30, dtype=int)])
    once = Part(FIT, vectors, truth, np.arange(20))
    often = Part(FIT, vectors[repeated], truth[repeated], repeated)
    scores = []
    for part in (once, often):
        penalty = len(part.truth) / 20.0  # weights have mean 1, so the sum of losses grows with the rows
        scores.append(LinearProbe().fit(part, CLASSES, [penalty], 0)[0].scores(vectors))
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_turning_into_the_span_of_the_rows_changes_nothing() -> None:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(6)
    wide, new = random.normal(size=(30, 200)), random.normal(size=(5, 200))
    truth, values = np.arange(30) % 2, random.normal(size=30)
    scaler = StandardScaler().fit(wide)
    part = Part(FIT, wide, truth, np.arange(30))
    expected = LogisticRegression(C=0.01, max_iter=2000, tol=1e-8).fit(scaler.transform(wide), truth)
    found = LinearProbe().fit(part, CLASSES, [100.0], 0)[0]
    np.testing.assert_allclose(found.scores(new), expected.predict_proba(scaler.transform(new)), atol=1e-4)
    ridge = Ridge(alpha=10.0).fit(scaler.transform(wide), values)
    found = LinearProbe().fit(Part(FIT, wide, values, np.arange(30)), VALUES, [10.0], 0)[0]
    np.testing.assert_allclose(found.scores(new), ridge.predict(scaler.transform(new)), atol=1e-8)


def test_attentive_probe_finds_the_token_that_tells() -> None:
    """The class is in one token of many, at a random place, marked by a key: its mean over tokens is all but lost."""
    random = np.random.default_rng(7)
    num, tokens, width = 160, 40, 8
    truth = np.arange(num) % 2
    inputs = random.normal(size=(num, tokens, width)).astype(np.float32)
    place = random.integers(0, tokens, num)
    inputs[np.arange(num), place, 0] = 6.0
    inputs[np.arange(num), place, 1] = 3.0 * (2 * truth - 1)
    train = Part(FIT, inputs[:100], truth[:100], np.arange(100))
    pairs = [
        (Part(FIT, inputs[:70], truth[:70], np.arange(70)), Part(VAL, inputs[70:100], truth[70:100], np.arange(30)))
    ]
    attentive = choose_and_fit(AttentiveProbe(), pairs, train, CLASSES, 0).fitted.scores(inputs[100:])
    assert (attentive.argmax(axis=1) == truth[100:]).mean() > 0.9
    again = choose_and_fit(AttentiveProbe(), pairs, train, CLASSES, 0).fitted.scores(inputs[100:])
    np.testing.assert_array_equal(attentive, again)


def test_neighbours_find_what_is_not_linear() -> None:
    random = np.random.default_rng(8)
    angle = random.uniform(0, 2 * np.pi, 300)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.05 * random.normal(size=(300, 2))
    truth = (vectors[:, 0] * vectors[:, 1] > 0).astype(int)  # opposite quarters: no line divides them
    data, units = Recorded(vectors, np.arange(300)), _units(truth, CLASSES)
    split = {0: _split(units)}
    by_probe = {}
    for probe in (LinearProbe(), NeighbourProbe()):
        methods = _methods(data, probe)
        table = _table(compare(methods, units, split, final=True), methods, units, 200)
        by_probe[probe.name] = table.get("features", "accuracy").interval
    assert by_probe["knn"].low > 0.8
    assert by_probe["linear"].high < 0.75


def test_several_seeds_are_averaged_and_their_spread_told() -> None:
    data, units = _cohort(60, 1.0, 10)
    splits = {
        seed: holdout(strata_of(units.group, units.truth, True), "subject", choice_seed=seed) for seed in range(3)
    }
    methods = _methods(data)
    predictions = compare(methods, units, splits, final=True)
    table = _table(predictions, methods, units, 300)
    alone = [_table(_only(predictions, s), methods, units, 300).get("features", "auroc") for s in range(3)]
    score = table.get("features", "auroc")
    assert score.interval.value == pytest.approx(np.mean([a.interval.value for a in alone]))
    assert score.seed_sd == pytest.approx(np.std([a.interval.value for a in alone], ddof=1))
    assert table.num_seeds == 3
    frame = predictions_frame(predictions, units)
    assert len(frame) == 2 * 3 * table.num_units
    np.testing.assert_allclose(frame["p(control)"] + frame["p(patient)"], 1)


def _only(predictions: Predictions, seed: int) -> Predictions:
    scores = {key: value for key, value in predictions.scores.items() if key[1] == seed}
    return Predictions(predictions.side, scores, predictions.settings, predictions.openings)


def test_one_class_to_train_on_is_an_error_that_names_it() -> None:
    data, units = _cohort(30, 1.0, 11)
    units.truth[:] = 1
    with pytest.raises(DataError, match=r"features, holdout: .* one class only \(patient\)"):
        compare(_methods(data), units, {0: _split(units)}, final=False)


def test_a_split_of_other_people_is_refused() -> None:
    data, units = _cohort(30, 1.0, 12)
    stranger = holdout({f"x{i}": 0 for i in range(9)}, "subject")
    with pytest.raises(DataError, match="are not in the split"):
        compare(_methods(data), units, {0: stranger}, final=False)


@pytest.mark.parametrize("side", ["fit", "val", "test"])
def test_a_split_with_a_side_of_strangers_is_refused(side: str) -> None:
    data, units = _cohort(30, 1.0, 12)
    fold = _split(units).folds[0]
    strangers = {f"x{i}": i % 2 for i in range(9)}
    parts = {"fit": fold.fit, "val": fold.choices[0].val, "test": fold.test, side: tuple(strangers)}
    rest = tuple(set(units.group) - {group for groups in parts.values() for group in groups})
    parts["fit" if side != "fit" else "val"] += rest
    odd = Fold("odd", parts["fit"], (Choice(parts["fit"], parts["val"]),), parts["test"])
    with pytest.raises(DataError, match=f"split odd: nobody of its {side} side has units here"):
        compare(_methods(data), units, {0: Split("file", "subject", (0, 0), (odd,))}, final=False)


def test_openings_are_counted_by_who_was_tested(tmp_path: Path) -> None:
    book = tmp_path / "openings.jsonl"
    assert FinalEvaluation(book, "a+b", {}, {"t1", "t2"}).openings == 1
    assert FinalEvaluation(book, "c", {}, {"t2", "t3"}).openings == 2
    assert FinalEvaluation(book, "b", {}).openings == 2  # one of the first's splits, without word of its groups
    assert FinalEvaluation(book, "d", {}, {"t4"}).openings == 1
    book.write_text("{}\n")
    with pytest.raises(DataError, match=r"openings\.jsonl: '\{\}' is no opening that was written down"):
        FinalEvaluation(book, "d", {})


def test_who_is_tested_does_not_depend_on_how_the_rest_is_divided() -> None:
    strata = {f"s{i:02d}": i % 2 for i in range(12)}
    one, other = (holdout(strata, "subject", choice_seed=seed) for seed in (0, 1))
    assert groups_tested([one]) == groups_tested([other])
    assert not groups_tested([one]) & groups_tested([holdout(strata, "subject", seed=5)])
    folds = groups_tested([k_fold(strata, "subject", 3, 0)])
    assert len(folds) == 4  # three folds, and all of them together
    assert folds & groups_tested([k_fold(strata, "subject", 3, 1)])
