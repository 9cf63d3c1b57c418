"""Finding runs and dividing people: names, folders, tables, splits that never move."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding.discover import discover, find_runs
from sharding.discover.summary import describe_found
from sharding.errors import InputError
from sharding.format import KEY_PATTERN
from sharding.keys import run_label, sample_key
from sharding.split import empty_splits, parse_fractions, split_of


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_folder_is_searched_to_the_bottom_and_only_series_are_taken(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "study",
        "sub-01/func/sub-01_task-rest_run-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        "sub-01/func/sub-01_task-rest_run-1_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-b/func/sub-02_ses-b_task-nback_bold.nii",
        "sub-02/ses-b/func/._sub-02_ses-b_task-nback_bold.nii",
        "README.md",
    )
    runs, left_out = find_runs([folder])
    assert [run_label(run) for run in runs] == ["study__sub-01_task-rest_run-1", "study__sub-02_ses-b_task-nback"]
    assert sorted(item.path.name for item in left_out) == [
        "sub-01_T1w.nii.gz",
        "sub-01_task-rest_run-1_desc-brain_mask.nii.gz",
    ]
    assert all(item.reason for item in left_out)


def test_entities_that_tell_files_apart_stand_in_the_key(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "d",
        "sub-1_task-x_dir-AP_bold.nii.gz",
        "sub-1_task-x_dir-PA_bold.nii.gz",
        "sub-1_task-x_echo-2_bold.nii",
    )
    assert [sample_key(run, 128) for run in find_runs([folder])[0]] == [
        "d__sub-1_task-x_dir-AP__000128",
        "d__sub-1_task-x_dir-PA__000128",
        "d__sub-1_task-x_echo-2__000128",
    ]


def test_any_name_makes_a_key_that_fits_a_tar(tmp_path: Path) -> None:
    long = "sub-" + "X" * 60 + "_ses-" + "Y" * 40 + "_task-z_run-1_bold.nii.gz"
    other = long.replace("run-1", "run-2")
    folder = touch(tmp_path / "d", "my run (1).v2.nii.gz", long, other)
    keys = [sample_key(run, 99_999) for run in find_runs([folder])[0]]
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)
    assert len(set(keys)) == 3
    assert "d__sub-my-run-1-v2__099999" in keys


def test_file_deep_in_a_tree_takes_the_name_of_the_tree(tmp_path: Path) -> None:
    name = "hcp/sub-01/ses-1/func/sub-01_bold.nii.gz"
    run = find_runs([touch(tmp_path, name) / name])[0][0]
    assert run.dataset == "hcp"


@pytest.mark.parametrize("kind", ["tsv", "csv", "parquet"])
def test_table_says_what_names_do_not(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "a.nii.gz", "deep/b.nii.gz", "m.nii.gz")
    columns = {
        "path": ["a.nii.gz", "deep/b.nii.gz"],
        "subject": ["7", "8"],
        "dataset": ["one", "two"],
        "family": ["F1", ""],
        "tr": ["0.72", "n/a"],
        "mask": ["m.nii.gz", ""],
        "split": ["", "val"],
        "age": ["30", "40"],
    }
    table = tmp_path / f"runs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), table)
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(columns), *(mark.join(row) for row in zip(*columns.values(), strict=True))]
        table.write_text("\n".join(lines) + "\n")
    first, second = find_runs([table], tr=2.0)[0]
    assert (first.path, first.subject, first.dataset, first.family) == (tmp_path / "a.nii.gz", "7", "one", "F1")
    assert (first.tr, first.mask, first.split) == (0.72, tmp_path / "m.nii.gz", "")
    assert (second.path, second.tr, second.mask, second.split) == (tmp_path / "deep/b.nii.gz", 2.0, None, "val")


def test_table_may_write_labels_as_bids_does(tmp_path: Path) -> None:
    table = tmp_path / "runs.tsv"
    table.write_text("path\tsubject\tsession\ttask\trun\nx.nii\tsub-01\tses-a\ttask-rest\trun-2\n")
    bids = touch(tmp_path / "d", "sub-01_ses-a_task-rest_run-2_bold.nii") / "sub-01_ses-a_task-rest_run-2_bold.nii"
    one, other = find_runs([table], dataset="d")[0][0], find_runs([bids], dataset="d")[0][0]
    assert run_label(one) == run_label(other) == "d__sub-01_ses-a_task-rest_run-2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file\nx.nii\n", "no column path"),
        ("path\ttr\nx.nii\tfast\n", "row 1: tr is 'fast'"),
        ("path\tsplit\nx.nii\ttraining\n", "row 1: split is 'training'"),
        ("path\tsubject\n\t3\n", "row 1: path is empty"),
        ("path\tsubject\nx.nii\t***\n", r"row 1: subject is '\*\*\*'; expected letters or digits"),
        ("path\tdataset\nx.nii\ta b\n", "dataset name 'a b'"),
    ],
)
def test_table_that_cannot_be_used_names_the_row(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "runs.tsv").write_text(text)
    with pytest.raises(InputError, match=reason):
        find_runs([tmp_path / "runs.tsv"])


def test_nothing_found_and_nothing_there_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no NIfTI run found"):
        find_runs([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        find_runs([tmp_path / "absent"])


def test_loop_of_links_is_walked_once(tmp_path: Path) -> None:
    folder = touch(tmp_path / "d", "x/sub-1_bold.nii")
    (folder / "x" / "again").symlink_to(folder)
    assert len(find_runs([folder])[0]) == 1


def test_splits_are_frozen() -> None:
    """These names must fall where they fell in the first release, or corpora that exist would leak between splits."""
    found = [split_of("phantom", f"{n:02d}") for n in range(1, 7)]
    assert found == ["test", "train", "val", "train", "train", "train"]
    assert [split_of("hcp", str(n)) for n in (100206, 100307, 100408, 101309)] == ["train", "train", "val", "train"]


def test_splits_have_the_shares_asked_for() -> None:
    people = [split_of("d", str(n), (0.7, 0.2, 0.1)) for n in range(20_000)]
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert people.count(name) / len(people) == pytest.approx(share, abs=0.01)


def test_larger_share_of_train_moves_nobody_out_of_it() -> None:
    for n in range(2000):
        if split_of("d", str(n), (0.7, 0.2, 0.1)) == "train":
            assert split_of("d", str(n), (0.8, 0.1, 0.1)) == "train"


def test_empty_splits_are_named() -> None:
    assert empty_splits(["train", "test", "train"]) == ["val"]


@pytest.mark.parametrize("text", ["0.8,0.2", "a,b,c", "0.8,0.3,0.1", "1.2,-0.1,-0.1"])
def test_shares_that_do_not_sum_to_one_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--splits"):
        parse_fractions(text)


def test_name_without_a_letter_for_keys_is_left_out_by_name(tmp_path: Path) -> None:
    """张三 leaves nothing for a key; the others are still found, and a table can name it."""
    folder = touch(tmp_path / "d", "张三.nii.gz", "sub-1_bold.nii.gz")
    runs, left_out = find_runs([folder])
    assert [run.subject for run in runs] == ["1"]
    (item,) = left_out
    assert item.failed
    assert item.reason.startswith(f"{folder / '张三.nii.gz'}: no letter from A to Z")
    with pytest.raises(InputError, match=r"no NIfTI run found.*张三\.nii\.gz: no letter from A to Z"):
        find_runs([folder / "张三.nii.gz"])
    table = tmp_path / "runs.csv"
    table.write_text("path,subject\nd/张三.nii.gz,zhang3\n", encoding="utf-8")
    assert [run.subject for run in find_runs([table])[0]] == ["zhang3"]


def test_summary_of_a_name_that_is_no_utf8_can_be_printed(tmp_path: Path) -> None:
    folder = touch(tmp_path / "d", "sub-1_bold.nii.gz", os.fsdecode(b"M\xfcller_mask.nii.gz"))
    said = describe_found(discover([folder]))
    assert r"M\xfcller_mask.nii.gz" in said
    said.encode()
