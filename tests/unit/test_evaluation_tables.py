"""Tables of targets: types, missing values, joins, and what they say when they cannot be used."""

from pathlib import Path

import pandas as pd
import pytest

from fmri_scale.errors import DataError
from fmri_scale.evaluation.entities import entities
from fmri_scale.evaluation.tables import classes_of, read_families, read_target


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_leading_zeros_and_bids_prefixes_survive(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.tsv", "participant_id\tsex\nsub-001\tF\nsub-01\tM\n")
    target = read_target(path, "sex", "classification")
    assert target.of(entities(2, subject=["001", "sub-01"])) == ["F", "M"]


def test_missing_values_are_named_not_imputed(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "subject,age\na,30\nb,n/a\nc,\nd,-999\n")
    target = read_target(path, "age", "regression", missing=["-999"])
    assert target.missing == ["b", "c", "d"]
    assert target.of(entities(3, subject=["a", "b", "z"])) == [30.0, None, None]


def test_numbers_written_by_spreadsheets_are_one_class(tmp_path: Path) -> None:
    pd.DataFrame({"subject": ["a", "b", "c", "d"], "dx": [1.0, 0.0, None, 10.0]}).to_parquet(tmp_path / "t.parquet")
    target = read_target(tmp_path / "t.parquet", "dx", "classification")
    values = target.of(entities(4, subject=["a", "b", "c", "d"]))
    assert values == ["1", "0", None, "10"]
    assert classes_of(values) == ["0", "1", "10"]


def test_sessions_and_runs_join_by_what_the_table_has(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.tsv", "subject\tsession\tpain\na\tses-1\t2\na\tses-2\t5\n")
    rows = entities(3, subject=["a", "a", "a"], session=["1", "2", "1"], run=["1", "1", "2"])
    assert read_target(path, "pain", "regression").of(rows) == [2.0, 5.0, 2.0]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("subject\tage\na\told\n", "regression", "a has 'old', which is no finite number"),
        ("subject\tage\na\tinf\n", "regression", "a has 'inf', which is no finite number"),
        ("subject\tage\na\t3\nsub-a\t4\n", "regression", "a has two values, 3.0 and 4.0"),
        ("subject\tyears\na\t3\n", "regression", "no column 'age'; it has subject, years"),
        ("id\tage\na\t3\n", "regression", "no column that names the subject"),
        ("subject\tage\na\tn/a\n", "regression", "all 1 values are missing"),
        ("subject\tage\na\t3\n", "ordinal", "expected classification or regression"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_target(_write(tmp_path / "t.tsv", text), "age", kind)


def test_names_that_never_meet_are_an_error_with_both_spellings(tmp_path: Path) -> None:
    target = read_target(_write(tmp_path / "t.tsv", "subject\tage\n1\t3\n"), "age", "regression")
    with pytest.raises(DataError, match=r"such as '1', the features '001'.*leading zeros"):
        target.of(entities(1, subject=["001"]))


def test_missing_file_and_other_kinds_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_target(tmp_path / "no.tsv", "age", "regression")
    with pytest.raises(DataError, match="must end in"):
        read_target(_write(tmp_path / "t.xlsx", ""), "age", "regression")


def test_families_come_from_columns_and_a_child_of_two_families_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.tsv", "subject\tmother\na\tm\nb\tm\nc\tn/a\n")
    (mother,) = read_families(path, ["mother"], entities(4, subject=["a", "b", "c", "z"]))
    assert mother.tolist() == ["m", "m", "", ""]
    _write(path, "subject\tmother\na\tm\na\tn\n")
    with pytest.raises(DataError, match="a is in two families, m, n"):
        read_families(path, ["mother"], entities(1, subject=["a"]))


def test_a_table_without_datasets_never_speaks_of_people_of_two(tmp_path: Path) -> None:
    rows = entities(3, dataset=["A", "B", "B"], subject=["1", "1", "2"])
    path = _write(tmp_path / "t.tsv", "subject\tage\tmother\n1\t3\tm\n2\t4\tn\n")
    message = r"t\.tsv.*: names people of datasets A and B alike, such as '1' \(1 in all\); add a column dataset"
    with pytest.raises(DataError, match=message):
        read_target(path, "age", "regression").of(rows)
    with pytest.raises(DataError, match=message):
        read_families(path, ["mother"], rows)
    others = entities(2, dataset=["A", "B"], subject=["1", "2"])
    assert read_target(path, "age", "regression").of(others) == [3.0, 4.0]
    _write(path, "dataset\tsubject\tage\tmother\nA\t1\t3\tm\nB\t2\t4\tn\n")
    assert read_target(path, "age", "regression").of(rows) == [3.0, None, 4.0]
    assert read_families(path, ["mother"], rows)[0].tolist() == ["m", "", "n"]


def test_the_text_of_a_class_stays_as_it_is(tmp_path: Path) -> None:
    texts = ["001", "01", "1", "1.00", "-2.0", "1_2", "12", "1e1", "12345678901234567891", "12345678901234567000"]
    rows = "".join(f"{i}\t{text}\n" for i, text in enumerate(texts))
    target = read_target(_write(tmp_path / "t.tsv", f"subject\tsite\n{rows}"), "site", "classification")
    values = target.of(entities(len(texts), subject=[str(i) for i in range(len(texts))]))
    assert values == ["001", "01", "1", "1", "-2", *texts[5:]]
    assert classes_of(values)[:4] == ["-2", "001", "01", "1"]  # equal numbers in a fixed order


def test_an_underscore_is_no_digit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a has '1_5', which is no finite number"):
        read_target(_write(tmp_path / "t.tsv", "subject\tage\na\t1_5\nb\t2\n"), "age", "regression")


def test_a_quote_in_a_tsv_swallows_nothing(tmp_path: Path) -> None:
    text = 'subject\tnote\t"sex"\na\t"left\tM\nb\tok\tF\nc\tright"\tF\nd\tok\t"M"\n'
    values = read_target(_write(tmp_path / "t.tsv", text), "sex", "classification").values
    assert values == {("a",): "M", ("b",): "F", ("c",): "F", ("d",): "M"}
    text = 'subject,note,sex\na,"left, right",M\n'
    assert read_target(_write(tmp_path / "t.csv", text), "sex", "classification").values == {("a",): "M"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,age,sex\na,25,M,\nb,30,F,\n", "rows have more cells than the header"),
        ("subject,sex, sex\na,M,F\n", "two columns are named 'sex'"),
    ],
)
def test_a_table_whose_columns_are_not_clear_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_target(_write(tmp_path / "t.csv", text), "sex", "classification")
