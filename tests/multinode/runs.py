"""A tiny training run on the hosts of a cluster: started by a script of launch/, watched through its folder."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from fmri_scale.checkpoint import consolidated_state, layout
from fmri_scale.training.supervise import record
from tests.helpers.tiny_training import arguments
from tests.multinode.cluster import Cluster, wait_for

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 900.0
"Seconds for what takes half a minute on a machine that does nothing else."


class Run:
    """A run folder and the command line that trains into it.

    Parameters
    ----------
    changes : configuration keys with `__` for a dot.
    """

    def __init__(self, cluster: Cluster, folder: Path, corpus: Path, **changes: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cluster, self.folder, self.run_dir = cluster, folder, folder / "run"
        self.arguments = arguments(self.run_dir, corpus, **changes)
        self._started = 0

    def hostfile(self, **slots: int) -> Path:
        """Write a hostfile, `node0=2, node1=2`."""
        path = self.folder / "hosts.txt"
        path.write_text("".join(f"{host} slots={number}\n" for host, number in slots.items()))
        return path

    def start(self, host: str, script: str, *more: str, **variables: object) -> "Started":
        """Start a script of launch/ on a host."""
        self._started += 1
        output = self.folder / f"{script}-{self._started}.txt"
        settings = {"OMP_NUM_THREADS": 1, "PREFLIGHT": 0, **variables}
        exports = " ".join(f"{key}={value}" for key, value in settings.items())
        words = " ".join(f"'{item}'" for item in [*self.arguments, *more])
        command = f"cd {self.folder} && exec env {exports} bash {ROOT}/launch/{script} {words}"
        return Started(self, self.cluster.start(host, command, output), output, host)

    def status(self) -> dict:
        """Return status.json, empty before it exists."""
        path = self.run_dir / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def rows(self) -> list[dict]:
        """Return the rows of metrics.jsonl."""
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]

    def launches(self) -> list[dict]:
        """Return the rows of launches.jsonl."""
        return record.read(self.run_dir)

    def losses(self) -> list[tuple[int, float]]:
        """Return (step, loss) of every row."""
        return [(row["step"], row["loss"]) for row in self.rows()]

    def saved_step(self) -> int:
        """Return the step of the newest checkpoint's name, 0 without any."""
        found = layout.committed(self.run_dir)
        return found[0].step if found else 0

    def weights(self) -> dict:
        """Return the newest checkpoint's weights."""
        return consolidated_state(self.run_dir)

    def rank_pid(self, host: str) -> int:
        """Return the process id of the first rank on a host."""
        lines = [line.split() for line in self.left_over()[host]]
        return min(int(words[0]) for words in lines if len(words) > 3 and words[3].endswith("fmri_scale/train.py"))

    def left_over(self) -> dict[str, list[str]]:
        """Return processes of the run on any host."""
        return self.cluster.processes(str(self.run_dir))


class Started:
    """A script that runs on a host."""

    def __init__(self, run: Run, process: subprocess.Popen[bytes], output: Path, host: str) -> None:
        self.run, self.process, self.output, self.host = run, process, output, host

    def wait_until(self, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        """Wait for a condition; fail with the output if the script ends first."""

        def holds() -> bool:
            held = condition()
            assert held or self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()}"
            return held

        try:
            wait_for(holds, seconds, "the condition")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}") from error

    def signal(self, name: str, pattern: str = "training.supervise run") -> None:
        """Signal the oldest process on the host whose command line holds `pattern` and the run's folder."""
        lines = self.run.cluster.processes(str(self.run.run_dir)).get(self.host, [])
        pids = sorted(int(line.split()[0]) for line in lines if pattern in line)
        assert pids, f"no process {pattern} among {lines}"
        self.run.cluster.run(self.host, f"kill -{name} {pids[0]}")

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {seconds} s:\n{self.text()}") from error

    def text(self) -> str:
        """Return what has been printed so far."""
        return self.output.read_text(errors="replace")


def unbroken(cluster: Cluster, folder: Path, corpus: Path, **changes: object) -> Run:
    """Return a run that one process made on one host without any launcher."""
    run = Run(cluster, folder, corpus, **changes)
    words = " ".join(f"'{item}'" for item in run.arguments)
    environment = f"OMP_NUM_THREADS=1 PYTHONPATH={ROOT}"
    cluster.run("node0", f"cd {folder} && {environment} {_python()} -m fmri_scale.train {words}", PATIENCE_S)
    return run


def _python() -> str:
    return os.fspath(ROOT / ".venv" / "bin" / "python")
