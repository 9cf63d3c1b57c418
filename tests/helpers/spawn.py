"""Start training as separate processes on this machine: several ranks without a launcher, or any command.

Ranks get the variables that torchrun would set. Every process runs without a compiler and with an empty folder for
compiled extensions, so a build that should not happen fails or is seen. Output is kept and shown where a test fails.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, "-m", "fmri_scale.train"]
TRAINEE = [sys.executable, "-m", "tests.helpers.trainee"]


@dataclass
class Finished:
    """A process that has ended."""

    code: int
    out: str
    err: str


class Job:
    """Some processes of one run, each with its output in a file."""

    def __init__(self, commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._files = [folder / f"{number + i}" for i in range(len(commands))]
        self.processes = [
            subprocess.Popen(
                list(command),
                stdout=file.with_suffix(".out").open("w"),
                stderr=file.with_suffix(".err").open("w"),
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
            for command, environment, file in zip(commands, environments, self._files, strict=True)
        ]

    def wait(self, timeout_s: float = 600.0) -> list[Finished]:
        """Wait for all; kill what still runs after the timeout (its code is then -9)."""
        deadline = time.monotonic() + timeout_s
        try:
            for process in self.processes:
                process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"killed after {timeout_s} s")
        finally:
            self.kill()
        ended = [
            Finished(process.wait(), file.with_suffix(".out").read_text(), file.with_suffix(".err").read_text())
            for process, file in zip(self.processes, self._files, strict=True)
        ]
        for rank, process in enumerate(ended):  # pytest shows this for tests that fail
            print(f"--- process {rank}, exit code {process.code}\n{process.out}\n{process.err}")
        return ended

    def kill(self) -> None:
        """SIGKILL every process group that is left, children included."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 300.0) -> None:
        """Wait for a condition while the processes run; fail if one ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            gone = [process for process in self.processes if process.poll() is not None]
            if gone or time.monotonic() > deadline:
                self.wait(0.1)
                raise AssertionError(
                    f"ended before the condition held: {[p.returncode for p in gone]}" if gone else "timeout"
                )
            time.sleep(0.005)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Return this process' environment without what a launcher sets, without compilers and W&B keys."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "OMPI_", "WANDB_", "PYTEST_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    extensions = tmp_path / "torch_extensions"
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "CC": "/bin/false",
        "CXX": "/bin/false",
        "TORCH_EXTENSIONS_DIR": str(extensions),
        "PYTHONPATH": str(ROOT),
        **more,
    }


def start_ranks(arguments: Sequence[str], world_size: int, tmp_path: Path, program: Sequence[str] = TRAIN) -> Job:
    """Start a program once per rank; one rank starts as plain python, without any variables."""
    common = environment(tmp_path)
    if world_size > 1:
        common |= {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r)} if world_size > 1 else {} for r in range(world_size)]
    return Job([[*program, *arguments]] * world_size, [common | rank for rank in ranks], tmp_path / "output")


def run_ranks(
    arguments: Sequence[str],
    world_size: int,
    tmp_path: Path,
    program: Sequence[str] = TRAIN,
    timeout_s: float = 600.0,
) -> list[Finished]:
    """Start a program once per rank and wait for all."""
    return start_ranks(arguments, world_size, tmp_path, program).wait(timeout_s)


def run_command(command: Sequence[str], tmp_path: Path, timeout_s: float = 600.0, **more: str) -> Finished:
    """Run one command, a launcher for instance."""
    return Job([command], [environment(tmp_path, **more)], tmp_path / "output").wait(timeout_s)[0]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
