"""The processes of a launch on this machine, found by a mark in their environment, and signals to them.

A launch gives everything it starts the variable FMRI_SCALE_LAUNCH=token. The mark is inherited over any number of
launchers, sessions and process groups (torchrun gives every rank a session of its own), so killing by group would
miss ranks, and killing by command line, as DeepSpeed's launcher does, can hit another run. Linux only (/proc).
"""

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

MARK = "FMRI_SCALE_LAUNCH"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """A process of a launch: its id, its parent's, its RANK if it has one, its command line."""

    pid: int
    parent: int
    rank: str
    command: str


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, instead of the machine's init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int) -> None:
    """Receive signal `number` when the parent process ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def marked(token: str) -> list[Process]:
    """Return the living processes of a launch on this machine, but for the caller."""
    wanted = f"{MARK}={token}"
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            process = _read(folder, wanted)
            if process:
                found.append(process)
    return found


def ranks(processes: list[Process]) -> list[Process]:
    """Return the training processes among them: those with a RANK whose parent has not the same."""
    rank_of = {process.pid: process.rank for process in processes}
    return [p for p in processes if p.rank and rank_of.get(p.parent, "") != p.rank]


def send(processes: list[Process], number: int) -> int:
    """Signal processes; return how many were still there."""
    reached = 0
    for process in processes:
        try:
            os.kill(process.pid, number)
            reached += 1
        except ProcessLookupError:
            continue
    return reached


def kill_all(token: str, seconds: float = 10.0) -> list[Process]:
    """SIGKILL everything of a launch on this machine until nothing is left; return what could not be killed."""
    end = time.monotonic() + seconds
    while (left := marked(token)) and time.monotonic() < end:
        send(left, signal.SIGKILL)
        time.sleep(0.05)
    return left


def reap() -> dict[int, int]:
    """Collect ended children, adopted ones too; return pid -> exit code (128 + signal for a killed one)."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = code if code >= 0 else 128 - code


def _read(folder: Path, wanted: str) -> Process | None:
    """Return a process if it is alive and carries the mark; a process of another user or one that just ended is not."""
    try:
        environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        if wanted not in environment:
            return None
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if state in "ZX":
        return None
    rank = next((entry.partition("=")[2] for entry in environment if entry.startswith("RANK=")), "")
    return Process(int(folder.name), int(parent), rank, command)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")
