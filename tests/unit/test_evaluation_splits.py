"""No subject, family or run stands on two sides of a split; splits are seeded, stratified and saved with a hash."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmri_scale.errors import DataError
from fmri_scale.evaluation.entities import entities, groups_of
from fmri_scale.evaluation.split_file import load_split, save_split
from fmri_scale.evaluation.splits import by_column, check_disjoint, holdout, k_fold, leave_one_out, strata_of


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of subject, mother, father, run and class; families overlap at random."""
    num_subjects = draw(st.integers(12, 40))
    parents = st.sampled_from(["", *(f"p{i}" for i in range(2 * num_subjects))])
    mother = [draw(parents) for _ in range(num_subjects)]
    father = [draw(parents) for _ in range(num_subjects)]
    label = [draw(st.integers(0, 1)) for _ in range(num_subjects)]
    owner = np.array([s for s in range(num_subjects) for _ in range(draw(st.integers(1, 3)))])
    subject = np.array([f"d/sub-{s:02d}" for s in owner], dtype=object)
    run = np.array([f"{name}/run-{i}" for i, name in enumerate(subject)], dtype=object)
    text = (np.array(column, dtype=object)[owner] for column in (mother, father))
    return subject, *text, run, np.array(label)[owner]  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 5), method=st.sampled_from(["holdout", "k_fold", "leave_one_out"]))
def test_no_subject_family_or_run_stands_on_two_sides(cohort: tuple, seed: int, method: str) -> None:
    subject, mother, father, run, truth = cohort
    group = groups_of(subject, [mother, father])
    strata = strata_of(group, truth, is_class=True)
    if len(strata) < 8:
        return
    made = {
        "holdout": lambda: holdout(strata, "family", seed=seed, choice_seed=seed + 1),
        "k_fold": lambda: k_fold(strata, "family", 4, seed),
        "leave_one_out": lambda: leave_one_out(strata, "family", seed),
    }[method]()
    for fold in made.folds:
        sides = [(fold.fit, fold.test), *((c.train, c.val) for c in fold.choices)]
        sides += [(c.val, fold.test) for c in fold.choices] + [(c.train, fold.test) for c in fold.choices]
        for one, other in sides:
            here, there = np.isin(group, one), np.isin(group, other)
            for names in (subject, mother, father, run):
                assert not (set(names[here]) & set(names[there])) - {""}
    check_disjoint(made, group, {"subject": subject, "mother": mother, "father": father, "run": run})
    assert made.groups() == set(group)


def test_half_siblings_through_either_parent_are_one_group() -> None:
    subject = np.array(["a", "b", "c", "d"], dtype=object)
    mother = np.array(["m1", "m1", "m2", ""], dtype=object)
    father = np.array(["f1", "f2", "f2", ""], dtype=object)
    assert groups_of(subject, [mother, father]).tolist() == ["a", "a", "a", "d"]


def test_same_family_name_in_two_columns_does_not_link() -> None:
    """Mother 7 and father 7 are two people."""
    subject = np.array(["a", "b"], dtype=object)
    assert len(set(groups_of(subject, [np.array(["7", ""], object), np.array(["", "7"], object)]))) == 2


def test_splitting_runs_of_people_is_refused_as_leakage() -> None:
    subject = np.array([f"sub-{i // 4}" for i in range(40)], dtype=object)
    run = np.array([f"run-{i}" for i in range(40)], dtype=object)
    by_run = holdout(dict.fromkeys(run, 0), "run")
    with pytest.raises(DataError, match=r"subject 'sub-.' stands on two sides of holdout; split by subject"):
        check_disjoint(by_run, run, {"subject": subject})


def test_every_side_gets_its_share_of_every_class() -> None:
    strata = {f"s{i:03d}": int(i % 4 == 0) for i in range(200)}
    fold = holdout(strata, "subject", (0.6, 0.2, 0.2)).folds[0]
    for groups, share in ((fold.fit, 0.6), (fold.choices[0].val, 0.2), (fold.test, 0.2)):
        assert len(groups) == pytest.approx(200 * share, abs=1)
        assert sum(strata[g] for g in groups) == pytest.approx(50 * share, abs=2)


def test_rare_classes_still_leave_no_side_empty() -> None:
    strata = {f"s{i:02d}": i for i in range(20)}  # every group a stratum of its own
    fold = holdout(strata, "subject").folds[0]
    assert [len(fold.fit), len(fold.choices[0].val), len(fold.test)] == [12, 4, 4]


def test_the_test_set_does_not_move_with_the_choice_seed() -> None:
    strata = {f"s{i:02d}": i % 2 for i in range(40)}
    one, other = (holdout(strata, "subject", seed=3, choice_seed=s).folds[0] for s in (0, 1))
    assert one.test == other.test
    assert one.choices[0].val != other.choices[0].val
    assert holdout(strata, "subject", seed=4).folds[0].test != one.test


def test_every_group_is_tested_once_and_never_fitted_on_then() -> None:
    strata = {f"run-{i}": 0 for i in range(8)}
    split = leave_one_out(strata, "run")
    assert sorted(g for fold in split.folds for g in fold.test) == sorted(strata)
    for fold in split.folds:
        assert len(fold.fit) == 7
        assert sorted(g for c in fold.choices for g in c.val) == sorted(fold.fit)


def test_saved_split_comes_back_and_an_edited_one_is_refused(tmp_path: Path) -> None:
    split = k_fold({f"s{i:02d}": i % 2 for i in range(12)}, "subject", 3, seed=9)
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    assert len((tmp_path / "split.tsv").read_text().splitlines()) == 1 + 3 * 12
    content = json.loads((tmp_path / "split.json").read_text())
    content["folds"][0]["fit"].append(content["folds"][0]["test"][0])
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed after it was made"):
        load_split(tmp_path / "split.json")


def test_a_corpus_column_decides_where_it_is_asked_for() -> None:
    split = by_column({"a": "train", "b": "val", "c": "test", "d": "train"}, "subject")
    assert split.folds[0].fit == ("a", "d")
    with pytest.raises(DataError, match="nobody is in val"):
        by_column({"a": "train", "c": "test"}, "subject")
    with pytest.raises(DataError, match="'holdout'"):
        by_column({"a": "train", "b": "val", "c": "holdout"}, "subject")


def test_too_few_groups_are_refused_with_the_number() -> None:
    with pytest.raises(DataError, match="2 groups"):
        holdout({"a": 0, "b": 1}, "subject")
    with pytest.raises(DataError, match="5 folds of 3 groups"):
        k_fold({"a": 0, "b": 1, "c": 0}, "subject", 5)


def test_bids_prefixes_and_datasets_are_part_of_the_name() -> None:
    made = entities(3, dataset=["x", "x", "y"], subject=["sub-01", "01", "01"], session=["ses-2", "", ""])
    assert made.names("subject").tolist() == ["x/sub-01", "x/sub-01", "y/sub-01"]
    assert made.names("session")[0] == "x/sub-01/ses-2"
    with pytest.raises(DataError, match="1 of 2 rows name no subject"):
        entities(2, subject=["01", ""])
