"""A corpus that grows or is made again: what stands keeps its bytes and its splits; only what differs is made."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sharding import append, shard
from sharding.append import append_corpus
from sharding.build import BuildResult, build_corpus
from sharding.cli import main
from sharding.corpus import open_corpus
from sharding.discover import find_runs
from sharding.errors import CorpusError, InputError
from sharding.verify import verify
from tests.helpers.sharding import ARGUMENTS, SETTINGS, cohort, digests


def make(source: Path | list[Path], out: Path, **options) -> BuildResult:
    runs, left_out = find_runs(source if isinstance(source, list) else [source], dataset="d")
    return build_corpus(runs, left_out, out, SETTINGS, **options)


def add(source: Path | list[Path], corpus: Path) -> BuildResult:
    runs, left_out = find_runs(source if isinstance(source, list) else [source], dataset="d")
    return append_corpus(runs, left_out, corpus)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("source"), subjects=4)


@pytest.fixture(scope="module")
def half(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the first two people."""
    out = tmp_path_factory.mktemp("half") / "corpus"
    make(sorted(source.iterdir())[:2], out)
    return out


@pytest.fixture
def corpus(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "corpus"))


def people(corpus: Path) -> dict[str, str]:
    index = open_corpus(corpus).index
    return dict(zip(index["subject"], index["split"], strict=True))


def test_appended_runs_leave_shards_and_splits_as_they_are(corpus: Path, source: Path) -> None:
    before, splits, meta = digests(corpus), people(corpus), open_corpus(corpus).meta
    result = add(source, corpus)
    after = digests(corpus)
    assert result.num_made == 2
    assert {name: after[name] for name in before if name != "index.parquet"} == {
        name: digest for name, digest in before.items() if name != "index.parquet"
    }
    assert sorted(set(after) - set(before)) == ["d-000002.tar", "d-000003.tar"]
    assert people(corpus).items() >= splits.items()
    assert sorted(people(corpus)) == ["0", "1", "2", "3"]
    totals = open_corpus(corpus).meta["totals"]
    assert (totals["runs"], totals["subjects"], totals["frames"]) == (4, 4, 32)
    assert open_corpus(corpus).corpus_id != meta["corpus_id"]
    assert verify(corpus, deep=True).findings == []
    assert not (corpus / ".build").exists()


def test_nothing_new_is_said_and_changes_nothing(corpus: Path, source: Path) -> None:
    before = {file: file.read_bytes() for file in corpus.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="all 2 runs are in it already"):
        add(sorted(source.iterdir())[:2], corpus)
    assert {file: file.read_bytes() for file in corpus.rglob("*") if file.is_file()} == before


def test_person_keeps_the_split_that_a_table_gave(source: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out", tmp_path / "runs.csv"
    table.write_text(f"path,split,family\n{source}/sub-0_task-rest_bold.nii.gz,test,F\n")
    make(table, out)
    table.write_text(
        f"path,run,subject,family\n{source}/sub-0_task-rest_bold.nii.gz,2,0,F\n"
        f"{source}/sub-1_task-rest_bold.nii.gz,1,1,F\n"
    )
    add(table, out)
    assert people(out) == {"0": "test", "1": "test"}
    table.write_text(f"path,run,subject,split\n{source}/sub-0_task-rest_bold.nii.gz,3,0,train\n")
    with pytest.raises(InputError, match=r"subject 0 of d would be in both test \(the corpus as it stands\) and train"):
        add(table, out)
    assert verify(out, deep=True).findings == []


def test_append_that_is_killed_before_its_last_file_is_taken_up(
    corpus: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(corpus, tmp_path / "whole"))
    add(source, whole)
    from sharding import finish

    def stop(path: Path, data: bytes) -> None:
        if path.name == "corpus.json":
            raise KeyboardInterrupt
        plain(path, data)

    plain = finish.write_whole
    monkeypatch.setattr(finish, "write_whole", stop)
    with pytest.raises(KeyboardInterrupt):
        add(source, corpus)
    monkeypatch.undo()
    with pytest.raises(CorpusError, match=r"4 samples, corpus\.json says 2"):
        open_corpus(corpus)
    assert add(source, corpus).num_made == 0
    assert digests(corpus) == digests(whole)
    assert verify(corpus, deep=True).findings == []


def test_run_that_failed_is_tried_again_by_append(source: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(source, tmp_path / "in")), tmp_path / "out"
    broken = folder / "sub-1_task-rest_bold.nii.gz"
    data = broken.read_bytes()
    broken.write_bytes(data[:-3000])
    assert len(make(folder, out).failed) == 1
    with pytest.raises(InputError, match="truncated"):
        add(folder, out)
    broken.write_bytes(data)
    assert add(folder, out).failed == []
    status = pq.read_table(out / "runs.parquet")["status"].to_pylist()
    assert status == ["ok"] * 4


def test_files_left_out_twice_stand_in_the_table_once(source: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(source, tmp_path / "in")), tmp_path / "out"
    (folder / "sub-0_task-rest_boldref.nii.gz").write_bytes(b"")
    later = (folder / "sub-3_task-rest_bold.nii.gz").rename(tmp_path / "later.nii.gz")
    make(folder, out)
    later.rename(folder / "sub-3_task-rest_bold.nii.gz")
    add(folder, out)
    assert sorted(pq.read_table(out / "runs.parquet")["status"].to_pylist()) == ["ok"] * 4 + ["skipped"]


def test_build_after_an_append_finds_everything_made(corpus: Path, source: Path) -> None:
    add(source, corpus)
    assert make(sorted(source.iterdir())[:2], corpus).num_made == 0
    assert open_corpus(corpus).meta["totals"]["runs"] == 4


def test_append_needs_a_whole_corpus_of_this_version(corpus: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no whole corpus"):
        add(source, tmp_path)
    shard_file = next((corpus / "shards").iterdir())
    data = shard_file.read_bytes()
    shard_file.unlink()
    with pytest.raises(CorpusError, match=f"1 shards are missing or short, {shard_file.name} first"):
        add(source, corpus)
    shard_file.write_bytes(data)
    meta = json.loads((corpus / "corpus.json").read_text())
    meta["settings"]["of_tomorrow"] = 1
    (corpus / "corpus.json").write_text(json.dumps(meta))
    with pytest.raises(CorpusError, match=r"made by another version of this program \(.*of_tomorrow"):
        add(source, corpus)


def test_removed_shard_is_made_again_by_the_same_build(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(source, out)
    before = digests(out)
    (out / "shards" / "d-000001.tar").unlink()
    assert make(source, out).num_made == 1
    assert digests(out) == before


def test_a_shard_made_again_leaves_what_was_appended_since(corpus: Path, source: Path) -> None:
    add(source, corpus)
    before, meta = digests(corpus), open_corpus(corpus).meta
    (corpus / "shards" / "d-000001.tar").unlink()
    assert make(sorted(source.iterdir())[:2], corpus).num_made == 1
    assert digests(corpus) == before
    assert open_corpus(corpus).meta["plans"] == meta["plans"]
    assert verify(corpus, deep=True).findings == []


def test_a_repair_that_is_broken_off_still_knows_what_was_appended(
    corpus: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(source, corpus)
    before = digests(corpus)
    (corpus / "shards" / "d-000001.tar").unlink()

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard, "prepare_run", killed)
        with pytest.raises(KeyboardInterrupt):
            make(sorted(source.iterdir())[:2], corpus)
    make(sorted(source.iterdir())[:2], corpus)
    assert digests(corpus) == before


def test_a_lost_shard_that_was_appended_is_named_and_nothing_changes(corpus: Path, source: Path) -> None:
    add(source, corpus)
    (corpus / "shards" / "d-000002.tar").unlink()
    before = digests(corpus)
    with pytest.raises(CorpusError, match=r"d-000002\.tar is missing or short and came with an append"):
        make(sorted(source.iterdir())[:2], corpus)
    assert digests(corpus) == before


def test_a_corpus_whose_replacement_fails_throughout_stays(
    corpus: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(corpus)

    def unusable(*args: object, **options: object) -> None:
        raise InputError("a column is missing")

    runs, left_out = find_runs([source], dataset="d")
    other = dataclasses.replace(SETTINGS, assume_mni=True)
    with monkeypatch.context() as patch:
        patch.setattr(shard, "prepare_run", unusable)
        with pytest.raises(InputError, match="a column is missing"):
            build_corpus(runs, left_out, corpus, other, overwrite=True)
    assert digests(corpus) == before
    assert open_corpus(corpus).meta["totals"]["runs"] == 2
    assert build_corpus(runs, left_out, corpus, other, overwrite=True).corpus.meta["totals"]["runs"] == 4


def test_a_corrected_sidecar_is_not_what_was_built(source: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(source, tmp_path / "in")), tmp_path / "out"
    sidecar = folder / "sub-2_task-rest_bold.json"
    sidecar.write_text('{"RepetitionTime": 1.5}')
    make(folder, out)
    sidecar.write_text('{"RepetitionTime": 2.5}')
    with pytest.raises(CorpusError, match="--overwrite"):
        make(folder, out)
    make(folder, out, overwrite=True)
    assert sorted(pq.read_table(out / "runs.parquet")["source_tr"].to_pylist())[-1] == 2.5


def test_overwriting_makes_only_what_differs(source: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(source, tmp_path / "in")), tmp_path / "out"
    make(folder, out)
    before = {file.name: file.stat().st_mtime_ns for file in (out / "shards").iterdir()}
    os.utime(folder / "sub-2_task-rest_bold.nii.gz")
    with pytest.raises(CorpusError, match="--overwrite"):
        make(folder, out)
    assert make(folder, out, overwrite=True).num_made == 1
    after = {file.name: file.stat().st_mtime_ns for file in (out / "shards").iterdir()}
    assert sum(before[name] != after[name] for name in before) == 1
    assert verify(out, deep=True).findings == []


def test_file_that_changes_during_the_build_is_not_taken(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = Path(shutil.copytree(source, tmp_path / "in")), shard.prepare_run

    def prepare_run(path: Path, *args, **options):
        if "sub-1" in path.name:
            os.utime(path)
        return plain(path, *args, **options)

    monkeypatch.setattr(shard, "prepare_run", prepare_run)
    (reason,) = make(folder, tmp_path / "out").failed
    assert "sub-1_task-rest_bold.nii.gz: changed since it was planned" in reason
    assert sorted(people(tmp_path / "out")) == ["0", "2", "3"]


@pytest.mark.parametrize(
    ("meanwhile", "reason"),
    [
        (
            lambda table: os.utime(table),
            "confounds of .*sub-1_task-rest_bold.nii.gz, changed since the run was planned",
        ),
        (lambda table: table.unlink(), "confounds.tsv: cannot be read .No such file or directory."),
    ],
)
def test_confounds_that_change_or_go_during_the_build_fail_their_run_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Path], None], reason: str
) -> None:
    table, confounds, plain = tmp_path / "runs.csv", tmp_path / "confounds.tsv", shard.prepare_run
    confounds.write_text("framewise_displacement\n" + "0.1\n" * 8)
    rows = "".join(f"{source}/sub-{n}_task-rest_bold.nii.gz,{'confounds.tsv' if n == 1 else ''}\n" for n in range(3))
    table.write_text(f"path,confounds\n{rows}")

    def prepare_run(path: Path, *args, **options):
        if "sub-1" in path.name:
            meanwhile(confounds)
        return plain(path, *args, **options)

    monkeypatch.setattr(shard, "prepare_run", prepare_run)
    (said,) = make(table, tmp_path / "out").failed
    assert re.search(reason, said), said
    assert sorted(people(tmp_path / "out")) == ["0", "2"]


def test_file_named_beside_a_run_that_is_not_there_fails_it_alone(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text(
        f"path,confounds\n{source}/sub-0_task-rest_bold.nii.gz,\n{source}/sub-1_task-rest_bold.nii.gz,absent.tsv\n"
    )
    (reason,) = make(table, tmp_path / "out").failed
    assert reason.startswith(f"{tmp_path / 'absent.tsv'}: cannot be read (No such file or directory)")
    assert sorted(people(tmp_path / "out")) == ["0"]


def test_limit_and_only_choose_runs(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build(out: str, *more: str) -> int:
        return main(["build", str(source), "--out", str(tmp_path / out), *ARGUMENTS, "--workers", "0", *more])

    assert build("a", "--limit", "2") == 0
    assert sorted(people(tmp_path / "a")) == ["0", "1"]
    assert build("b", "--only", "*sub-3*") == 0
    assert sorted(people(tmp_path / "b")) == ["3"]
    assert build("c", "--only", "*sub-7*") == 2
    assert "--only '*sub-7*' fits none of 4 runs, such as d__sub-0_task-rest" in capsys.readouterr().err
    assert build("c", "--limit", "0") == 2
    assert not (tmp_path / "c").exists()
    assert main(["append", str(tmp_path / "a"), str(source), "--dataset", "d", "--workers", "0"]) == 0
    assert sorted(people(tmp_path / "a")) == ["0", "1", "2", "3"]


def test_append_holds_the_lock_of_the_corpus(corpus: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*args, **options):
        with pytest.raises(CorpusError, match="another build is at work"):
            add(source, corpus)
        raise KeyboardInterrupt

    monkeypatch.setattr(append, "write_corpus_files", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        add(source, corpus)


def test_corpus_of_an_earlier_version_grows_without_what_was_not_measured_then(corpus: Path, source: Path) -> None:
    runs, meta = pq.read_table(corpus / "runs.parquet"), json.loads((corpus / "corpus.json").read_text())
    pq.write_table(runs.drop_columns(["int8_corr_p5", "mask_dice"]), corpus / "runs.parquet")
    for name in ("geometry", "interpolation", "time_interpolation", "confounds", "scrub_fd_mm"):
        del meta["settings"]["preprocessing"][name]
    del meta["settings"]["pseudonyms"]
    (corpus / "corpus.json").write_text(json.dumps(meta))
    add(source, corpus)
    after = pq.read_table(corpus / "runs.parquet").to_pylist()
    assert [run["int8_corr_p5"] is None for run in sorted(after, key=lambda run: run["subject"])] == [True] * 2 + [
        False
    ] * 2
    stored = open_corpus(corpus).meta["settings"]["preprocessing"]
    assert stored["time_interpolation"] == "linear"  # as it was made
