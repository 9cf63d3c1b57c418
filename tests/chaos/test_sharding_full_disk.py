"""A disk that fills up during a build: one line, only whole shards, and with space again the same bytes."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding.build import build_corpus
from sharding.discover import find_runs
from sharding.errors import CorpusError
from tests.helpers.sharding import SETTINGS, cohort, digests, start_build

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]).returncode:
        pytest.skip("needs to be allowed to mount a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk_ends_in_one_line_and_is_gone_on_from(small_disk: Path, tmp_path: Path) -> None:
    source, out = cohort(tmp_path / "in"), small_disk / "corpus"
    process = start_build(source, out, "--workers", "1")
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 2, errors
    assert errors.count("\n") == 1
    assert "cannot be written (No space left on device)" in errors
    runs, left_out = find_runs([source], dataset="d")
    expected = digests(build_corpus(runs, left_out, tmp_path / "out", SETTINGS).corpus.path)
    assert digests_of_shards(out).items() < expected.items()
    assert not list(out.glob("**/*.tmp-*"))
    with pytest.raises(CorpusError, match="No space left on device"):
        build_corpus(runs, left_out, out, SETTINGS)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    result = build_corpus(runs, left_out, out, SETTINGS)
    assert result.num_made < 3
    assert digests(out) == expected


def digests_of_shards(corpus: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (corpus / "shards").iterdir()}
