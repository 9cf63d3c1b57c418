"""Builds of small corpora for tests: a cohort of files, the command in a process of its own, digests of its work."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sharding.plan import BuildSettings
from sharding.prepare import PreprocessingSettings
from tests.helpers.images import head, save, stored_as

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = BuildSettings(preprocessing=PreprocessingSettings(target_tr=None, min_frames=4), shard_bytes=6 * 2**20)
"One small run a shard."

ARGUMENTS = ("--dataset", "d", "--target-tr", "native", "--min-frames", "4", "--shard-mb", "6")
"The same, as arguments of the command line."


def cohort(folder: Path, subjects: int = 3, volumes: int = 8, codes: str = "RAS") -> Path:
    """Write a run of each of some people; return the folder."""
    for number in range(subjects):
        image = head(volumes=volumes, seed=number)
        image = image if codes == "RAS" else stored_as(image, codes)
        save(image, folder, f"sub-{number}_task-rest_bold.nii.gz")
    return folder


def digests(corpus: Path) -> dict[str, str]:
    """sha256 of everything in a corpus that may not depend on who made it and when."""
    files = [*sorted((corpus / "shards").iterdir()), corpus / "index.parquet", corpus / "mask.nii.gz"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def start_build(source: Path, out: Path, *more: str, patch: Path | None = None) -> subprocess.Popen[str]:
    """Start `fmri-shards build`; `patch`: a folder whose sitecustomize.py each of its processes runs at its start."""
    paths = [*([str(patch)] if patch else []), str(ROOT)]
    program = "import sys; from sharding.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", program, "build", str(source), "--out", str(out), *ARGUMENTS, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        # tests that a shell started in the background ignore Ctrl-C, and would hand that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def patched_preparation(folder: Path, body: str) -> Path:
    """Have `body` run in every worker before each run is prepared, with `path`, its file; return the folder."""
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if any('sharding.engine.child' in word for word in sys.orig_argv):\n"
        "    from sharding import shard\n"
        "    plain = shard.prepare_run\n"
        "    def prepare_run(path, *args, **options):\n"
        f"{lines}\n"
        "        return plain(path, *args, **options)\n"
        "    shard.prepare_run = prepare_run\n"
    )
    return folder


def children(process: int) -> list[int]:
    """Processes started by a process, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" ", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(rest.rpartition(")")[2].split()[1]) == process:
            found.append(int(pid))
    return sorted(found)


def workers_of(process: int) -> list[int]:
    """Processes started by a build that make shards."""
    return [pid for pid in children(process) if b"sharding.engine.child" in command_of(pid)]


def command_of(pid: int) -> bytes:
    """Command line of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_for(found: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> bool:
    """Wait until something is found or the process has ended; whether it was found."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found():
            return True
        if process.poll() is not None:
            return bool(found())
        time.sleep(0.005)
    raise TimeoutError(f"nothing within {seconds} s")
