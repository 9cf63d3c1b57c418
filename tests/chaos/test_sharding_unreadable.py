"""A folder and a file that may not be read, by permissions that hold: named, and the corpus is made of the rest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sharding.corpus import open_corpus
from tests.helpers.sharding import ARGUMENTS, ROOT, cohort


@pytest.fixture
def held_by_permissions() -> list[str]:
    """What to put before a command that must not read what its user may not: root gives up the right to."""
    if os.geteuid() != 0:
        return []
    dropped = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("needs setpriv, to give up reading everything")
    return command


def test_folder_and_file_that_may_not_be_read_are_named_and_the_rest_is_made(
    held_by_permissions: list[str], tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("open", "closed"):
        cohort(source / name, 2)
    closed = [source / "closed", source / "open" / "sub-1_task-rest_bold.nii.gz"]
    for path in closed:
        path.chmod(0)
    program = "import sys; from sharding.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["build", str(source), "--out", str(out), *ARGUMENTS, "--workers", "1"]
    build = subprocess.run(
        [*held_by_permissions, sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    for path in closed:
        path.chmod(0o755)
    assert build.returncode == 1, build.stderr
    assert set(open_corpus(out).index["subject"]) == {"0"}
    failed = {run["source"]: run["reason"] for run in pq.read_table(out / "runs.parquet").to_pylist() if run["reason"]}
    assert failed == {
        str(closed[0]): "folder cannot be read (Permission denied)",
        str(closed[1]): f"{closed[1]}: cannot be read (Permission denied)",
    }
