"""launch/build_slurm.sh: a Slurm job makes the bytes that one process makes, and leaves nothing running.

srun is played by a script that runs its command here; everything else is as in a job.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharding.build import build_corpus
from sharding.discover import find_runs
from tests.helpers.sharding import ARGUMENTS, ROOT, SETTINGS, cohort, digests

SRUN = '#!/usr/bin/env bash\n[[ $1 == --kill-on-bad-exit=* ]] && shift\nexec "$@"\n'


@pytest.mark.dist
def test_slurm_job_makes_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    source, root = cohort(tmp_path / "in"), tmp_path / "root"
    (root / "launch").mkdir(parents=True)
    (root / "launch" / "env.sh").write_text("# the environment is there already\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "SLURM_SUBMIT_DIR": str(root),
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "2",
    }
    command = ["bash", ROOT / "launch" / "build_slurm.sh", source, "--out", tmp_path / "out", *ARGUMENTS]
    job = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert job.returncode == 0, job.stderr
    assert "3 runs of 3 subjects, 24 frames in 3 shards (3 made now)" in job.stdout
    runs, left_out = find_runs([source], dataset="d")
    assert digests(tmp_path / "out") == digests(build_corpus(runs, left_out, tmp_path / "here", SETTINGS).corpus.path)
    assert [path.name for path in root.iterdir()] == ["launch"]
