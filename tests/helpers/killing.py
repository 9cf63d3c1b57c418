"""SIGKILL to what a launch consists of: one rank, all of it, the launcher or a supervisor, at a chosen moment.

Works on launches of launch/local.sh, whose processes carry a mark (training/supervise/processes.py). `Moment` says who
dies when; `kill` waits for it.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from fmri_scale.checkpoint import layout
from fmri_scale.training.supervise import processes
from tests.helpers.spawn import ROOT, environment

VICTIMS = ("all", "launcher", "rank", "supervisor")
IN_WRITING = (True, False, False, True, False, True, True, False)
"Of eight moments, four victims twice: once while a checkpoint is written, once at any time."
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Moment:
    """Who is killed and when: `steps` checkpoints later, in the writing of the next or not, `pause_s` seconds on."""

    victim: str
    steps: int
    in_writing: bool
    pause_s: float


def draw_moments(number: int, draw: random.Random) -> list[Moment]:
    """Return random moments, the victims in turn."""
    moments = []
    for i in range(number):
        in_writing = IN_WRITING[i % 8]
        pause_s = draw.uniform(0, 0.02 if in_writing else 0.3)
        moments.append(Moment(VICTIMS[i % 4], draw.randint(1, 3), in_writing, pause_s))
    return moments


class Launch:
    """A run under launch/local.sh on two ranks."""

    def __init__(self, arguments: list[str], run_dir: Path, folder: Path) -> None:
        self.run_dir = run_dir
        self._output = folder / f"launch_{len(list(folder.glob('launch_*')))}.txt"
        self._known = set((run_dir / "launch").glob("*.env"))
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                ["bash", str(ROOT / "launch" / "local.sh"), *arguments],
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder,
                env=environment(folder, RANKS="2", GRACE="10"),
            )  # fmt: skip

    @property
    def token(self) -> str:
        """The launch's name, once it is planned."""
        new = set((self.run_dir / "launch").glob("*.env")) - self._known
        return new.pop().stem if new else ""

    def text(self) -> str:
        """What has been printed."""
        return self._output.read_text(errors="replace")

    def saved(self) -> int:
        """Return the step of the newest checkpoint's name, 0 without any."""
        found = layout.committed(self.run_dir)
        return found[0].step if found else 0

    def kill(self, moment: Moment) -> bool:
        """Wait for a moment and kill; return whether a checkpoint was being written then."""
        goal = self.saved() + moment.steps
        self._wait(lambda: self.saved() >= goal)
        victims = self._pids(moment.victim)  # before the moment: finding them takes longer than writing does
        if moment.in_writing:
            self._wait(lambda: bool(list(layout.folder(self.run_dir).glob("*.tmp/engine"))))
        time.sleep(moment.pause_s)
        writing = bool(list(layout.folder(self.run_dir).glob("*.tmp")))
        _kill(victims)
        if moment.victim == "all":
            _kill([process.pid for process in self.left()])
        return writing

    def left(self) -> list[processes.Process]:
        """Return what is there of the launch: supervisors, launchers, ranks, readers."""
        named = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if str(self.run_dir) in _text(path)]
        ours = {int(folder.name) for folder in named} - {os.getpid()}
        marked = processes.marked(self.token)
        rest = ours - {process.pid for process in marked}
        return marked + [processes.Process(pid, 0, "", "supervisor") for pid in sorted(rest)]

    def _pids(self, victim: str) -> list[int]:
        there = self.left()
        if victim == "all":
            return [process.pid for process in there]
        if victim == "rank":
            return [max(process.pid for process in processes.ranks(there))]
        if victim == "launcher":
            return [next(process.pid for process in there if "deepspeed.launcher.launch" in process.command)]
        return [self.process.pid]  # local.sh ends in `exec`

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still there after {seconds} s:\n{self.text()}") from error

    def wait_for_none(self, seconds: float) -> float:
        """Wait until no process of the launch is left; return how long that took."""
        begin = time.monotonic()
        while left := self.left():
            assert time.monotonic() - begin < seconds, f"left after {seconds} s: {left}\n{self.text()}"
            time.sleep(0.05)
        return time.monotonic() - begin

    def close(self) -> None:
        """End everything, whatever happened."""
        self.process.kill()
        self.process.wait()
        _kill([process.pid for process in self.left()])

    def _wait(self, condition) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < end, f"waited in vain:\n{self.text()}"
            time.sleep(0.001)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended
        return ""
