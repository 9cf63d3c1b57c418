"""Independence: however many workers, on Dask or not, killed wherever and started again, a corpus has the same bytes.

By default a small cohort; FMRI_SCALE_LONG_TESTS=1 takes a larger one, with Dask killed more often.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding.build import build_corpus
from sharding.discover import find_runs
from tests.helpers.sharding import SETTINGS, children, cohort, command_of, digests, start_build, wait_for, workers_of

LONG = os.environ.get("FMRI_SCALE_LONG_TESTS") == "1"
SUBJECTS = 24 if LONG else 6
KILLS = 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("source"), SUBJECTS, volumes=24 if LONG else 8)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    runs, left_out = find_runs([source], dataset="d")
    out = tmp_path_factory.mktemp("out") / "corpus"
    assert not build_corpus(runs, left_out, out, SETTINGS).failed
    assert len(digests(out)) == SUBJECTS + 2
    return digests(out)


def finish(process: subprocess.Popen[str]) -> None:
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors


@pytest.mark.parametrize("workers", ["1", "2", "4"])
def test_number_of_workers_changes_no_byte(
    source: Path, expected: dict[str, str], tmp_path: Path, workers: str
) -> None:
    finish(start_build(source, tmp_path / "out", "--workers", workers))
    assert digests(tmp_path / "out") == expected


def test_killed_and_started_again_ten_times_makes_the_same_bytes(
    source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    chance = random.Random(20)
    out, corpora = tmp_path / "0", 1
    for kill in range(KILLS):
        process = start_build(source, out, "--workers", "2")
        wait_for(lambda folder=out: list(folder.glob(".build/*.tar.tmp-*")), process)
        time.sleep(chance.uniform(0, 0.5))
        build_itself = kill % 3 > 0
        victims = [process.pid] if build_itself else workers_of(process.pid)[:1]
        if process.poll() is None and victims:
            os.kill(victims[0], signal.SIGKILL)
        if build_itself and process.wait(timeout=600) == -signal.SIGKILL:
            process.communicate()
            continue
        # A worker was killed, or it was too late to kill anything: the corpus is whole, and another is begun.
        finish(process)
        assert digests(out) == expected
        out, corpora = tmp_path / str(corpora), corpora + 1
    finish(start_build(source, out, "--workers", "2"))
    assert digests(out) == expected


def dask_workers(process: int) -> list[int]:
    """Dask workers of a cluster that a build has started."""
    return [pid for pid in children(process) if b"spawn_main" in command_of(pid)]


@pytest.fixture
def cluster_build(source: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    pytest.importorskip("distributed")
    process = start_build(source, tmp_path / "out", "--scheduler", "dask", "--workers", "2")
    yield process
    process.kill()
    process.communicate()


def test_dask_whose_worker_is_killed_makes_the_same_bytes(
    cluster_build: subprocess.Popen[str], expected: dict[str, str], tmp_path: Path
) -> None:
    for kill in range(5 if LONG else 1):
        wait_for(lambda least=kill: len(list((tmp_path / "out").glob("shards/*"))) > least, cluster_build)
        if cluster_build.poll() is None and (workers := dask_workers(cluster_build.pid)):
            os.kill(workers[-1], signal.SIGKILL)
    finish(cluster_build)
    assert digests(tmp_path / "out") == expected
