"""A corpus: the same bytes from the same brains, whole or not there, going on where it stopped, readable by anyone."""

import errno
import fcntl
import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash

from sharding import shard
from sharding.build import BuildResult, build_corpus
from sharding.corpus import Corpus, open_corpus
from sharding.discover import find_runs
from sharding.engine import unit
from sharding.errors import CorpusError, InputError
from sharding.format import MEMBER_COLUMNS, NPY_HEADER_BYTES, SUFFIXES
from sharding.plan import BuildSettings
from sharding.prepare import PreprocessingSettings, prepare_run
from tests.helpers.images import head, save, stored_as

SETTINGS = BuildSettings(preprocessing=PreprocessingSettings(target_tr=None, min_frames=4), shard_bytes=6 * 2**20)


def make(inputs: list[Path], out: Path, settings: BuildSettings = SETTINGS, **options) -> BuildResult:
    runs, left_out = find_runs(inputs, dataset="d")
    return build_corpus(runs, left_out, out, settings, **options)


def digests(corpus: Path) -> dict[str, str]:
    files = [*sorted((corpus / "shards").iterdir()), corpus / "index.parquet", corpus / "mask.nii.gz"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def cohort(folder: Path, subjects: int = 3, volumes: int = 8, codes: str = "RAS") -> Path:
    for number in range(subjects):
        image = head(volumes=volumes, seed=number)
        image = image if codes == "RAS" else stored_as(image, codes)
        save(image, folder, f"sub-{number}_task-rest_bold.nii.gz")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def corpus(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("out") / "corpus"
    result = make([source], out)
    assert not result.failed
    return open_corpus(out)


@pytest.mark.parametrize("codes", ["LAS", "PSR"])
def test_storage_order_changes_no_byte_of_a_corpus(corpus: Corpus, tmp_path: Path, codes: str) -> None:
    make([cohort(tmp_path / "in", codes=codes)], tmp_path / "out")
    assert digests(tmp_path / "out") == digests(corpus.path)
    assert open_corpus(tmp_path / "out").corpus_id == corpus.corpus_id
    runs = pq.read_table(tmp_path / "out" / "runs.parquet").to_pylist()
    assert {run["source_orientation"] for run in runs} == {codes}


def test_order_of_inputs_changes_nothing(corpus: Corpus, source: Path, tmp_path: Path) -> None:
    make(sorted(source.iterdir(), reverse=True), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(corpus.path)


def test_index_leads_to_every_member(corpus: Corpus) -> None:
    index = corpus.index
    assert len(corpus) == 3
    for i in range(len(corpus)):
        data = corpus.shard_path(index["shard"][i]).read_bytes()
        members = {}
        for suffix, stem in MEMBER_COLUMNS.items():
            start = index[f"{stem}_offset"][i]
            members[suffix] = data[start : start + index[f"{stem}_bytes"][i]]
            assert xxhash.xxh3_64_intdigest(members[suffix]) == index[f"{stem}_xxh3"][i]
        codes = np.load(io.BytesIO(members[".bold.npy"]))
        assert codes.shape == (index["n_frames"][i], corpus.num_voxels)
        assert members[".bold.npy"][NPY_HEADER_BYTES:] == codes.tobytes()
        hashes = np.load(io.BytesIO(members[".frame_xxh3.npy"]))
        assert [xxhash.xxh3_64_intdigest(frame.tobytes()) for frame in codes] == hashes.tolist()
        facts = json.loads(members[".json"])
        for name in ("key", "dataset", "subject", "split", "start_frame", "n_frames", "tr", "unit", "mean", "sd"):
            assert facts[name] == index[name][i]


def test_stock_webdataset_reads_the_shards(corpus: Corpus) -> None:
    urls = [str(corpus.shard_path(item["name"])) for item in corpus.meta["shards"]]
    assert len(urls) > 1
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == list(corpus.index["key"])
    for sample, frames in zip(samples, corpus.index["n_frames"], strict=True):
        assert {f".{name}" for name in sample if not name.startswith("__")} == set(SUFFIXES)
        assert sample["bold.npy"].dtype == np.int8
        assert sample["bold.npy"].shape == (frames, corpus.num_voxels)
        assert sample["json"]["n_frames"] == frames


def test_shard_is_the_tar_that_webdataset_writes(corpus: Corpus, tmp_path: Path) -> None:
    for item in corpus.meta["shards"]:
        shard_path, again = corpus.shard_path(item["name"]), tmp_path / item["name"]
        samples = list(webdataset.WebDataset(str(shard_path), shardshuffle=False))
        with again.open("wb") as file:
            writer = webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="")
            for sample in samples:
                writer.write({name: sample[name] for name in sample if name == "__key__" or name[0] != "_"})
            writer.close()
        assert again.read_bytes() == shard_path.read_bytes()


def test_stored_codes_are_those_of_the_run(corpus: Corpus, source: Path) -> None:
    run = prepare_run(source / "sub-1_task-rest_bold.nii.gz", SETTINGS.preprocessing)
    i = list(corpus.index["subject"]).index("1")
    start = corpus.index["bold_offset"][i]
    data = corpus.shard_path(corpus.index["shard"][i]).read_bytes()[start : start + corpus.index["bold_bytes"][i]]
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), run.codes)


def test_totals_are_what_the_files_hold(corpus: Corpus) -> None:
    totals = corpus.meta["totals"]
    shards = list((corpus.path / "shards").iterdir())
    assert totals["bytes"] == sum(file.stat().st_size for file in shards)
    assert totals["frames"] == 24
    assert (totals["runs"], totals["subjects"], totals["samples"], totals["failed"]) == (3, 3, 3, 0)
    for item in corpus.meta["shards"]:
        data = (corpus.path / "shards" / item["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (item["bytes"], item["sha256"])
    assert not (corpus.path / ".build").exists()


def test_long_run_is_cut_into_segments_that_share_one_scale(tmp_path: Path) -> None:
    path = save(head(voxel_mm=12, volumes=140), tmp_path / "in")
    corpus = make([path], tmp_path / "out").corpus
    assert list(corpus.index["start_frame"]) == [0, 128]
    assert list(corpus.index["n_frames"]) == [128, 12]
    for stem in ("scale", "stats"):
        assert len(set(corpus.index[f"{stem}_xxh3"])) == 1
    assert len(set(corpus.index["bold_xxh3"])) == 2


def test_bad_run_fails_alone_with_its_reason(source: Path, tmp_path: Path) -> None:
    folder = cohort(tmp_path / "in")
    broken = folder / "sub-1_task-rest_bold.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-3000])
    result = make([folder], tmp_path / "out")
    assert len(result.failed) == 1
    assert str(broken) in result.failed[0]
    assert list(result.corpus.index["subject"]) == ["0", "2"] or list(result.corpus.index["subject"]) == ["2", "0"]
    runs = {run["subject"]: run for run in pq.read_table(tmp_path / "out/runs.parquet").to_pylist()}
    assert runs["1"]["status"] == "failed"
    assert "truncated" in runs["1"]["reason"]
    assert {runs["0"]["status"], runs["2"]["status"]} == {"ok"}


def test_3d_image_in_a_folder_is_left_out_but_named_by_hand_it_is_an_error(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "in", subjects=1)
    flat = save(nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.int16), np.eye(4)), folder, "sub-9_anatomy.nii.gz")
    result = make([folder], tmp_path / "a")
    assert (result.failed, result.num_left_out) == ([], 1)
    result = make([folder / "sub-0_task-rest_bold.nii.gz", flat], tmp_path / "b")
    assert "3D image" in result.failed[0]


def test_names_that_are_no_utf8_stand_in_the_tables_escaped(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = (source / "sub-0_task-rest_bold.nii.gz").read_bytes()
    for name in (b"sub-M\xfcller_bold.nii.gz", b"sub-2_bold.nii.gz"):
        (folder / os.fsdecode(name)).write_bytes(image)
    for name in (b"M\xfcller_mask.nii.gz", b"sub-damaged\xfc_bold.nii.gz"):
        (folder / os.fsdecode(name)).touch()
    rows = make([folder], tmp_path / "out").corpus.path / "runs.parquet"
    found = {Path(row["source"]).name: row for row in pq.read_table(rows).to_pylist()}
    assert {name: row["status"] for name, row in found.items()} == {
        r"sub-M\xfcller_bold.nii.gz": "ok",
        "sub-2_bold.nii.gz": "ok",
        r"M\xfcller_mask.nii.gz": "skipped",
        r"sub-damaged\xfc_bold.nii.gz": "failed",
    }
    assert r"sub-damaged\xfc_bold.nii.gz: " in found[r"sub-damaged\xfc_bold.nii.gz"]["reason"]


def test_two_runs_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    again = cohort(tmp_path / "in", subjects=1)
    with pytest.raises(InputError, match=r"are both d__sub-0_task-rest; tell them apart"):
        make([source, again], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("0,1,,train\n1,1,,val\n", "subject 1 of d would be in both train .* and val"),
        ("0,1,F,train\n1,2,F,test\n", "family F of d would be in both train .* and test"),
    ],
)
def test_person_or_family_is_never_divided(source: Path, tmp_path: Path, rows: str, reason: str) -> None:
    lines = [row.split(",", 1) for row in rows.splitlines()]
    table = tmp_path / "runs.csv"
    paths = [f"{source}/sub-{number}_task-rest_bold.nii.gz,{rest}" for number, rest in lines]
    with_runs = [f"{line},{run}" for run, line in enumerate(paths)]
    table.write_text("path,subject,family,split,run\n" + "\n".join(with_runs) + "\n")
    with pytest.raises(InputError, match=reason):
        make([table], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_split_of_a_table_goes_before_the_hash(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    rows = [f"{source}/sub-{number}_task-rest_bold.nii.gz,F{number},test" for number in range(3)]
    table.write_text("path,family,split\n" + "\n".join(rows) + "\n")
    index = make([table], tmp_path / "out").corpus.index
    assert set(index["split"]) == {"test"}
    assert sorted(index["family"]) == ["F0", "F1", "F2"]


def test_second_start_makes_only_what_is_missing(
    corpus: Corpus, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def stop_at_second(planned: shard.PlannedShard, *args: object) -> dict:
        made.append(planned.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return shard.make_shard(planned, *args)

    monkeypatch.setattr(unit, "make_shard", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        make([source], tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(CorpusError, match="run the same fmri-shards build again"):
        open_corpus(tmp_path / "out")
    first = tmp_path / "out" / "shards" / made[0]
    before = first.stat().st_mtime_ns
    result = make([source], tmp_path / "out")
    assert result.num_made == len(result.corpus.meta["shards"]) - 1
    assert first.stat().st_mtime_ns == before
    assert digests(tmp_path / "out") == digests(corpus.path)
    assert make([source], tmp_path / "out").num_made == 0


def test_other_inputs_never_mix_with_a_corpus_that_exists(source: Path, tmp_path: Path) -> None:
    make([source / "sub-0_task-rest_bold.nii.gz"], tmp_path / "out")
    before = digests(tmp_path / "out")
    with pytest.raises(CorpusError, match="--overwrite"):
        make([source], tmp_path / "out")
    assert digests(tmp_path / "out") == before
    assert make([source], tmp_path / "out", overwrite=True).corpus.meta["totals"]["runs"] == 3


def test_folder_with_other_things_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(CorpusError, match="holds no corpus"):
        make([source], tmp_path)
    with pytest.raises(CorpusError, match="holds no corpus"):
        make([source], tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_killed_build_leaves_whole_shards_and_goes_on_to_the_same_bytes(
    corpus: Corpus, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW_BUILD, str(source), str(out)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not list(out.glob(".build/*.tar.tmp-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == (143 if number == signal.SIGTERM else -9), errors
        assert not list((out / "shards").glob("*tmp*"))
        for file in (out / "shards").iterdir():
            assert hashlib.sha256(file.read_bytes()).hexdigest() == digests(corpus.path)[file.name]
        if number == signal.SIGTERM:
            assert not list(out.glob(".build/*.tmp-*"))
    make([source], out)
    assert digests(out) == digests(corpus.path)


SLOW_BUILD = """
import sys, time
from sharding import shard, cli
plain = shard.samples_of
def slow(*args):
    for sample in plain(*args):
        time.sleep(60)
        yield sample
shard.samples_of = slow
sys.exit(cli.main(["build", sys.argv[1], "--out", sys.argv[2], "--dataset", "d", "--target-tr", "native",
                   "--min-frames", "4", "--shard-mb", "6", "--workers", "0"]))
"""


def test_two_builds_of_one_corpus_do_not_run_together(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(source), str(out)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not list(out.glob(".build/*.tar.tmp-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(CorpusError, match="another build is at work"):
            make([source], out)
        assert list(out.glob(".build/*.tar.tmp-*"))
    finally:
        process.kill()
        process.wait()


def test_file_system_without_locks_or_synced_folders_is_built_on_with_a_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    def files_alone(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(os, "fsync", files_alone)
    with pytest.warns(UserWarning, match="has no locks; start no other build in it"):
        assert make([source / "sub-0_task-rest_bold.nii.gz"], tmp_path / "out").num_made == 1


def test_full_disk_ends_in_one_line_and_can_be_gone_on_from(corpus: Corpus, source: Path, tmp_path: Path) -> None:
    # A limit on the size of a file stands for a full disk: it lets the tar begin and not end.
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, -1))\n" + SLOW_BUILD
    command = [sys.executable, "-c", limited.replace("time.sleep(60)", "pass"), str(source), str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2, process.stderr
    assert "cannot be written (File too large)" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("**/*.tar*"))
    make([source], tmp_path / "out")
    assert digests(tmp_path / "out") == digests(corpus.path)


DAMAGE = {
    "no such corpus": lambda c: c.rename(c.parent / "elsewhere"),
    "not a whole corpus": lambda c: (c / "corpus.json").unlink(),
    "schema version 99": lambda c: (c / "corpus.json").write_text('{"schema_version": 99}'),
    "shard is missing": lambda c: next((c / "shards").iterdir()).unlink(),
    "corpus.json says": lambda c: next((c / "shards").iterdir()).write_bytes(b"short"),
    r"index\.parquet: cannot be read": lambda c: (c / "index.parquet").write_bytes(b"short"),
    r"corpus\.json: 'corpus_id' is missing": lambda c: (c / "corpus.json").write_text('{"schema_version": 1}'),
    r"corpus\.json: cannot be read": lambda c: (c / "corpus.json").write_text("[]"),
    r"corpus\.json: not the facts of a corpus": lambda c: (c / "corpus.json").write_text(
        '{"schema_version": 1, "corpus_id": "x", "tr": 1, "mask": []}'
    ),
    r"mask\.nii\.gz: cannot be read": lambda c: (c / "mask.nii.gz").write_bytes(b"short"),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_damaged_corpus_is_refused_by_name(source: Path, tmp_path: Path, reason: str) -> None:
    folder = tmp_path / "corpus"
    make([source / "sub-0_task-rest_bold.nii.gz"], folder)
    DAMAGE[reason](folder)
    with pytest.raises(CorpusError, match=reason):
        open_corpus(folder)
