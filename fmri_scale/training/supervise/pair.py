"""Two supervisors that watch each other, so that no single SIGKILL leaves ranks behind.

The inner one keeps the job and receives SIGTERM when the outer one dies; the outer one inherits all processes when
the inner one dies, and stops them.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from fmri_scale.log import get_logger
from fmri_scale.training.supervise import processes
from fmri_scale.training.supervise.hosts import signal_all
from fmri_scale.training.supervise.keeper import REQUESTS, Job

log = get_logger(__name__)


def run(job: Job, keep: Callable[[], int]) -> int:
    """Call `keep` in a child process and return its exit code; if it is killed, stop the job's processes."""
    processes.adopt_orphans()
    outer = os.getpid()
    inner = os.fork()
    if inner == 0:
        os.setpgid(0, 0)  # Ctrl-C comes through the outer one alone
        processes.adopt_orphans()
        processes.die_with_parent(signal.SIGTERM)
        _leave(keep() if os.getppid() == outer else 1)

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(inner, number)

    for number in REQUESTS:
        signal.signal(number, forward)
    code = _wait(inner)
    if code < 128:
        return code
    log.error("the supervisor was killed (exit code %d): stopping its processes", code)
    _stop(job)
    return code


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(pid: int) -> int:
    """Return the exit code of a child, collecting adopted ones meanwhile."""
    while True:
        ended = processes.reap()
        if pid in ended:
            return ended[pid]
        time.sleep(0.2)


def _stop(job: Job) -> None:
    """SIGTERM to the ranks, `grace_s` for them to leave, SIGKILL to the rest."""
    end = time.monotonic() + job.grace_s
    processes.send(processes.ranks(processes.marked(job.token)), signal.SIGTERM)
    signal_all(job.hosts, job.token, "TERM")
    while processes.ranks(processes.marked(job.token)) and time.monotonic() < end:
        processes.reap()
        time.sleep(0.2)
    processes.kill_all(job.token)
    signal_all(job.hosts, job.token, "KILL")
