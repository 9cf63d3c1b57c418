"""Run a launcher command, answer for every process that comes of it, and tell the truth about its end.

SIGTERM, SIGUSR1 and Ctrl-C reach all ranks of all nodes at once, once; they have `grace_s` to save and leave, then
everything is killed. The launchers in between never see these signals: they start with them blocked (a mask that
survives exec; training/signals.py lifts it in the ranks), because DeepSpeed's stop its ranks one after the other
and kill each after 30 s, and others die of SIGUSR1 or leave their ranks behind.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fmri_scale.log import get_logger
from fmri_scale.training.supervise import processes
from fmri_scale.training.supervise.hosts import SSH_OPTIONS, signal_all
from fmri_scale.training.supervise.output import Follower, NodeEnds
from fmri_scale.training.supervise.verdict import REQUEUE_CODE, Verdict, judge, judge_command, read_status

log = get_logger(__name__)

REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PEERS_S = 30.0
"Seconds that the other nodes may take to end once one has failed: no checkpoint can be made without it."
POLL_S = 0.1


@dataclass(frozen=True)
class Job:
    """A command to run and answer for.

    Attributes
    ----------
    command : the launcher and its arguments.
    token : value of FMRI_SCALE_LAUNCH by which its processes are found, on every host.
    run_dir : the run's folder, for status.json; None for a command that is no training.
    hosts : nodes reached over ssh where processes of the launch are; empty if all are on this machine.
    grace_s : seconds between the request to stop and the kill.
    env : variables beside this process' own.
    settle_s : seconds that the last processes may take to follow their launcher, and a shared file system to show
        rank 0's last word.
    follow : pattern below run_dir of the log file to show; empty shows none.
    """

    command: Sequence[str]
    token: str
    run_dir: Path | None = None
    hosts: list[str] = field(default_factory=list)
    grace_s: float = 120.0
    settle_s: float = 5.0
    env: dict[str, str] = field(default_factory=dict)
    follow: str = ""


class Keeper:
    """One run of a job's command."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.requested = 0
        self._code: int | None = None
        self._pid = 0
        self._asked = False
        self._deadline = float("inf")
        self._nodes: NodeEnds | None = None
        self._follower = Follower(job.run_dir, job.follow) if job.run_dir and job.follow else None

    def run(self) -> Verdict:
        """Start the command, wait for its end, clear away what is left; return the verdict."""
        before = read_status(self.job.run_dir)
        for number in REQUESTS:
            signal.signal(number, self._request)
        self._start()
        while self._code is None:
            self._turn()
        orphans = self._sweep()
        if self._follower:
            self._follower.close()
        if self.job.run_dir is None:
            return judge_command(self._code, orphans)
        return judge(self._code, before, self._last_status(before), orphans)

    def _start(self) -> None:
        """Start the command in a session of its own, with the requests blocked."""
        env = {**os.environ, **self.job.env, processes.MARK: self.job.token}
        pipe = os.pipe() if self.job.hosts else None
        if pipe:
            env["PDSH_SSH_ARGS_APPEND"] = " ".join([env.get("PDSH_SSH_ARGS_APPEND", ""), *SSH_OPTIONS]).strip()
            self._nodes = NodeEnds(pipe[0], self._node_ended)
        self._pid = os.fork()
        if self._pid == 0:
            _become(self.job.command, env, pipe[1] if pipe else None)
        if pipe:
            os.close(pipe[1])

    def _turn(self) -> None:
        """Look around once: ended processes, output, requests, the deadline."""
        self._code = processes.reap().get(self._pid, self._code)
        if self._nodes:
            self._nodes.poll()
        if self._follower:
            self._follower.poll()
        if self.requested and not self._asked:
            log.warning("%s: asking all ranks to save and stop, within %g s", _name(self.requested), self.job.grace_s)
            self._ask(self.job.grace_s)
        if time.monotonic() > self._deadline:
            log.warning("the time to stop is over: killing what is left")
            self._deadline = float("inf")
            self._kill()
        time.sleep(POLL_S)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested == signal.SIGINT:
            self._deadline = 0.0  # Ctrl-C twice: at once
        self.requested = self.requested or number

    def _node_ended(self, host: str, code: int) -> None:
        """A node has ended with an error; the others must follow."""
        if code == REQUEUE_CODE or self._asked:
            self._deadline = min(self._deadline, time.monotonic() + PEERS_S)
            return
        log.warning("node %s ended with %d; stopping the others within %g s", host, code, PEERS_S)
        self._ask(PEERS_S)

    def _ask(self, seconds: float) -> None:
        """SIGTERM to all ranks everywhere, at once."""
        self._asked, self._deadline = True, time.monotonic() + seconds
        processes.send(processes.ranks(processes.marked(self.job.token)), signal.SIGTERM)
        for answer in signal_all(self.job.hosts, self.job.token, "TERM"):
            if answer.error:
                log.warning("node %s cannot be reached: %s", answer.host, answer.error)

    def _kill(self) -> list[str]:
        """SIGKILL to everything everywhere; return what even that did not end."""
        left = [f"{p.pid} {p.command[:80]}" for p in processes.kill_all(self.job.token)]
        for answer in signal_all(self.job.hosts, self.job.token, "KILL"):
            if answer.error:
                log.warning("node %s cannot be reached: %s; look for processes there", answer.host, answer.error)
            left += [f"{answer.host}: {process}" for process in answer.left]
        for process in left:
            log.error("cannot be killed: %s", process)
        return left

    def _sweep(self) -> list[str]:
        """Wait for stragglers, ask ranks that are left to save and stop, kill the rest; return what was found."""
        found = self._wait_for_none(self.job.settle_s)
        if not found:
            return []
        log.warning("the launcher has ended (%s) but not: %s", self._code, "; ".join(found[:8]))
        if not self._asked:
            self._ask(self.job.grace_s)
        if self._wait_for_none(max(0.0, min(self._deadline - time.monotonic(), self.job.grace_s))):
            self._kill()
        return found

    def _wait_for_none(self, seconds: float) -> list[str]:
        """Return the launch's processes, here and on all hosts, that are still there after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            processes.reap()
            left = [f"{p.pid} {p.command[:80]}" for p in processes.marked(self.job.token)]
            silent = []
            for answer in [] if left else signal_all(self.job.hosts, self.job.token, "0"):
                left += [f"{answer.host}: {process}" for process in answer.left]
                silent += [answer] if answer.error else []
            if not left or time.monotonic() > end:
                for answer in silent:
                    log.warning("node %s does not say what still runs there: %s", answer.host, answer.error)
                return left
            if self._follower:
                self._follower.poll()
            time.sleep(POLL_S)

    def _last_status(self, before: dict) -> dict:
        """Return status.json once it holds rank 0's last word, or after a while."""
        end = time.monotonic() + self.job.settle_s
        while True:
            status = read_status(self.job.run_dir)
            final = status != before and status.get("state") not in ("starting", "running")
            if final or time.monotonic() > end:
                return status
            time.sleep(POLL_S)


def _become(command: Sequence[str], env: dict[str, str], stderr: int | None) -> None:
    """Turn this forked child into the command."""
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
        for number in REQUESTS:
            signal.signal(number, signal.SIG_DFL)
        if stderr is not None:
            os.dup2(stderr, 2)
        os.execvpe(command[0], list(command), env)
    except OSError as error:
        os.write(2, f"supervise: {command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _name(number: int) -> str:
    return signal.Signals(number).name
