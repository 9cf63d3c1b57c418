"""The engines: whoever makes the shards, they are the same; a run that raises or kills its process fails alone."""

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sharding import shard
from sharding.build import BuildResult, build_corpus
from sharding.corpus import open_corpus
from sharding.discover import find_runs
from sharding.engine import Engine, engine_for
from sharding.engine.local import InProcess, LocalProcesses
from sharding.engine.unit import Unit, begin, make_unit
from sharding.engine.worker import MAX_DEATHS
from sharding.errors import CorpusError, InputError
from sharding.plan import plan_build
from sharding.sample import Sample, samples_of
from tests.helpers.sharding import (
    SETTINGS,
    cohort,
    command_of,
    digests,
    patched_preparation,
    start_build,
    wait_for,
    workers_of,
)


def make(source: Path, out: Path, engine: Engine | None = None, **options) -> BuildResult:
    runs, left_out = find_runs([source], dataset="d")
    return build_corpus(runs, left_out, out, SETTINGS, engine=engine, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("source"), subjects=4)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("out") / "corpus"
    assert not make(source, out, InProcess()).failed
    return digests(out)


def runs_of(out: Path) -> dict[str, dict]:
    return {run["subject"]: run for run in pq.read_table(out / "runs.parquet").to_pylist()}


def test_processes_make_the_same_bytes_and_tell_of_every_frame(
    source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    told: list[int] = []
    wanted: list[int] = []

    def start(num_frames: int):
        wanted.append(num_frames)
        return told.append

    result = make(source, tmp_path / "out", LocalProcesses(2), start=start)
    assert result.num_made == len(expected) - 2
    assert digests(tmp_path / "out") == expected
    assert wanted == [sum(told)] == [32]
    assert not (tmp_path / "out" / ".build").exists()
    assert not workers_of(os.getpid())


def test_run_that_kills_its_process_fails_alone(source: Path, tmp_path: Path) -> None:
    patch = patched_preparation(tmp_path / "patch", "if 'sub-1' in path.name:\n    os.kill(os.getpid(), 9)")
    process = start_build(source, tmp_path / "out", "--workers", "1", patch=patch)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 1, errors
    runs = runs_of(tmp_path / "out")
    assert runs["1"]["status"] == "failed"
    assert f"its process ended {MAX_DEATHS} times (signal 9)" in runs["1"]["reason"]
    assert str(source / "sub-1_task-rest_bold.nii.gz") in runs["1"]["reason"]
    assert {run["status"] for name, run in runs.items() if name != "1"} == {"ok"}
    # What is made without it is what is made where it is simply not there.
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("0", "2", "3"):
        (alone / f"sub-{name}_task-rest_bold.nii.gz").symlink_to(source / f"sub-{name}_task-rest_bold.nii.gz")
    kept = set(make(alone, tmp_path / "without").corpus.index["bold_xxh3"])
    assert set(open_corpus(tmp_path / "out").index["bold_xxh3"]) == kept


def test_run_that_raises_what_no_check_foresaw_fails_alone(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shard.prepare_run

    def prepare_run(path: Path, *args, **options):
        if "sub-2" in path.name:
            raise ZeroDivisionError("a fault\nin a library")
        return MemoryError() if "sub-9" in path.name else plain(path, *args, **options)

    monkeypatch.setattr(shard, "prepare_run", prepare_run)
    result = make(source, tmp_path / "out", InProcess())
    (reason,) = result.failed
    assert "sub-2_task-rest_bold.nii.gz: ZeroDivisionError (a fault in a library)" in reason
    assert sorted(result.corpus.index["subject"]) == ["0", "1", "3"]


def test_run_that_fails_half_written_leaves_no_part_of_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(run, planned, split: str) -> Iterator[Sample]:
        yield from samples_of(run, planned, split)
        if planned.subject == "3":
            raise MemoryError

    told: list[int] = []
    monkeypatch.setattr(shard, "samples_of", half)
    result = make(source, tmp_path / "out", InProcess(), start=lambda frames: told.append)
    assert sum(told) == 32
    (reason,) = result.failed
    assert "sub-3_task-rest_bold.nii.gz: not enough memory for it" in reason
    assert sorted(result.corpus.index["subject"]) == ["0", "1", "2"]
    data = b"".join(file.read_bytes() for file in (tmp_path / "out" / "shards").iterdir())
    assert b"sub-3" not in data


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_ends_all_workers_and_leaves_only_whole_shards(
    source: Path, expected: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start_build(source, out, "--workers", "2", patch=patched_preparation(tmp_path / "p", "time.sleep(1)"))
    finished, under_way = ".build/*.tar.json", ".build/*.tar.tmp-*"
    assert wait_for(lambda: list(out.glob(finished)) and len(list(out.glob(under_way))) == 2, process)
    workers = workers_of(process.pid)
    process.send_signal(number)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert errors.count("\n") == 1, errors
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not list(out.glob("**/*.tmp-*"))
    whole = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (out / "shards").iterdir()}
    assert whole
    assert whole.items() <= expected.items()
    recorded = list(out.glob(".build/*.tar.json"))
    assert make(source, out, InProcess()).num_made == 4 - len(recorded) < 4
    assert digests(out) == expected


def test_worker_ends_when_the_build_is_killed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_build(source, out, "--workers", "1", patch=patched_preparation(tmp_path / "p", "time.sleep(60)"))
    assert wait_for(lambda: list(out.glob(".build/*.tar.tmp-*")), process)
    (worker,) = workers_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while command_of(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not command_of(worker)


def test_worker_of_an_earlier_start_names_no_shard(source: Path, tmp_path: Path) -> None:
    runs, left_out = find_runs([source], dataset="d")
    planned = plan_build(runs, left_out, SETTINGS).shards[0]
    work = tmp_path / ".build"
    work.mkdir()
    (tmp_path / "shards").mkdir()
    unit = Unit(planned, SETTINGS, tmp_path, begin(work))
    begin(work)
    with pytest.raises(CorpusError, match="stopped or started again"):
        make_unit(unit, lambda frames: None)
    assert list((tmp_path / "shards").iterdir()) == []
    assert [path.name for path in work.iterdir()] == ["start"]


def test_disk_that_cannot_be_written_stops_all_workers_in_one_line(source: Path, tmp_path: Path) -> None:
    out, patch = tmp_path / "out", tmp_path / "patch"
    patched_preparation(patch, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, -1))")
    process = start_build(source, out, "--workers", "2", patch=patch)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert "cannot be written (File too large)" in errors
    assert errors.count("\n") == 1, errors
    assert list((out / "shards").iterdir()) == []


@pytest.mark.parametrize(
    ("scheduler", "workers", "said"),
    [
        ("local", -1, "--workers is -1; expected 0 or more"),
        ("nowhere", None, "--scheduler is 'nowhere'; expected one of: local, dask"),
        ("missing.json", None, "missing.json: no such file"),
        ("slurm", None, "say how many jobs with --workers N"),
    ],
)
def test_scheduler_that_makes_no_sense_is_refused_before_anything_is_done(
    scheduler: str, workers: int | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        engine_for(scheduler, workers)


def test_slurm_without_the_size_of_a_job_says_where_it_stands() -> None:
    pytest.importorskip("dask_jobqueue")
    import dask

    with (
        dask.config.set({"jobqueue.slurm.cores": None}),
        pytest.raises(InputError, match="says no cores or memory of a job"),
    ):
        engine_for("slurm", 2)


def test_slurm_job_runs_one_dask_worker_with_what_the_user_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    with jobqueue.SLURMCluster(cores=1, memory="4GB", queue="normal", walltime="02:00:00") as cluster:
        script = cluster.job_script()
    assert "#SBATCH -p normal" in script
    assert "distributed.cli.dask_worker" in script
