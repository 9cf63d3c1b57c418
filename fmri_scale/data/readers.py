"""The reader processes of a rank, seen from the training process: who reads what, who died, who is stuck.

The processes start before anybody knows what they will read, so that the index is read meanwhile (see `begin`).
Jobs go out in order to the reader with the least to do; answers are taken while waiting. A reader that dies is
replaced and its jobs are read again. One that answers nothing for `stall_timeout_s` has its stacks and pending reads
logged first. A job that brings down three readers is given up, and its clips count as unreadable.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fmri_scale.data.request import Job
from fmri_scale.data.ring import Ring
from fmri_scale.errors import DataError
from fmri_scale.log import get_logger

MOST_UNREAD_BYTES = 1 << 16
"Of requests sent to one reader and not yet answered: far below what its socket holds, so that sending never waits."

MOST_LIVES = 3
"Readers that may go down with one job."

START_S = 60.0
"Seconds a reader may take to start, which on a busy machine is long."

DUMP_S = 2.0
"Seconds a stuck reader gets to write its stacks, and a killed one to go."


class Reader:
    """One process, with the jobs it has not answered, in the order in which it reads them."""

    def __init__(self, ring: Ring) -> None:
        here, there = socket.socketpair()
        self.socket, self.jobs, self.unread = here, deque[tuple[Job, int]](), 0
        self._dump = os.memfd_create("fmri_scale_stacks", os.MFD_CLOEXEC)
        self.heard, self.ready = time.monotonic(), False
        self._rest = b""
        descriptors = [there.fileno(), ring.fd, self._dump]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fmri_scale.data.reader_process", *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env=_environment(),
        )
        there.close()

    def send(self, line: bytes) -> None:
        """Send a line; a reader that is gone is noticed when it is listened to."""
        with contextlib.suppress(OSError):
            self.socket.sendall(line + b"\n")

    def listen(self) -> list[dict[str, Any]] | None:
        """Return the answers that have come; None when the process is gone."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        answers = [json.loads(line) for line in lines]
        if answers and not self.ready:
            self.ready = True
            return answers[1:]  # the first only says that it has started
        return answers

    def stacks(self) -> str:
        """Return what the process says it is doing, and what the kernel says where it cannot."""
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + DUMP_S
        while os.fstat(self._dump).st_size == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.05)
        text = os.pread(self._dump, 1 << 16, 0).decode(errors="replace")
        try:
            waits = Path(f"/proc/{self.process.pid}/wchan").read_text() or "-"
        except OSError:
            waits = "unknown"
        return f"{text.strip() or 'no answer to a signal'} (kernel: {waits})"

    def kill(self) -> bool:
        """End the process at once; return whether it is really gone."""
        self.process.kill()
        self.socket.close()
        os.close(self._dump)
        try:
            self.process.wait(DUMP_S)
        except subprocess.TimeoutExpired:
            return False
        return True


class ReaderPool:
    """Reads jobs with `num_readers` processes, which start at once and wait for `begin`.

    Parameters
    ----------
    ring
        Memory that is shared with them.
    stall_timeout_s
        Seconds without an answer after which a reader is replaced.
    where
        Turns a job into text for messages.
    """

    def __init__(self, ring: Ring, num_readers: int, stall_timeout_s: float, where: Any) -> None:
        self._setup = b""
        self._ring, self._stall_timeout_s, self._where = ring, stall_timeout_s, where
        self._waiting: deque[tuple[Job, bytes]] = deque()
        self._lives: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self.restarts = 0
        self.readers: list[Reader] = []
        for _ in range(num_readers):
            self._start()

    def begin(self, setup: dict[str, Any]) -> None:
        """Tell the readers what reader_process.Worker must know, beside the layout; the ring has its size by now."""
        self._setup = json.dumps({**setup, "layout": asdict(self._ring.layout)}).encode()
        for reader in self.readers:
            reader.send(self._setup)

    def submit(self, job: Job) -> None:
        """Have a job read, after those submitted before."""
        line = json.dumps({"job": job.number, "slot": job.slot, "clips": job.clips}).encode()
        self._waiting.append((job, line))
        self._send_out()

    def wait(self, job: Job) -> None:
        """Return when a job has been read, or given up: then its `faults` say so.

        Raises
        ------
        DataError
            A reader cannot even be killed, since the storage holds it inside the kernel.
        """
        self._take_answers(0.0)
        while not job.done:
            self._take_answers(min(1.0, self._stall_timeout_s / 4))
            for reader in [r for r in self.readers if r.jobs and self._is_stuck(r)]:
                self._log_stuck(reader)
                self._replace(reader)

    def close(self) -> None:
        """End the readers."""
        for reader in self.readers:
            reader.kill()
        self.readers.clear()
        self._waiting.clear()
        self._selector.close()

    def _start(self) -> None:
        reader = Reader(self._ring)
        if self._setup:
            reader.send(self._setup)
        self._selector.register(reader.socket, selectors.EVENT_READ, reader)
        self.readers.append(reader)

    def _send_out(self) -> None:
        while self._waiting:
            reader = min(self.readers, key=lambda r: r.unread)
            job, line = self._waiting[0]
            if reader.jobs and reader.unread + len(line) > MOST_UNREAD_BYTES:
                return
            if not reader.jobs:
                reader.heard = time.monotonic()
            self._waiting.popleft()
            reader.jobs.append((job, len(line)))
            reader.unread += len(line)
            reader.send(line)

    def _take_answers(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            reader = key.data
            answers = reader.listen()
            if answers is None:
                status = reader.process.poll()
                get_logger(__name__).warning("a reader process ended (status %s); starting another", status)
                self._replace(reader)
                continue
            for answer in answers:
                job, size = reader.jobs.popleft()
                assert job.number == answer["job"], "a reader answers in order"
                reader.unread -= size
                job.faults = {int(place): reason for place, reason in answer["faults"].items()}
                job.retries = answer["retries"]
                job.done = True
                self._lives.pop(job.number, None)
        self._send_out()

    def _is_stuck(self, reader: Reader) -> bool:
        patience = self._stall_timeout_s if reader.ready else max(self._stall_timeout_s, START_S)
        return time.monotonic() - reader.heard > patience

    def _log_stuck(self, reader: Reader) -> None:
        pending = "; ".join(self._where(job) for job, _ in reader.jobs)
        get_logger(__name__).error(
            "no clip from reader process %d for %.0f s; it is replaced. Pending: %s\n%s",
            reader.process.pid,
            time.monotonic() - reader.heard,
            pending,
            reader.stacks(),
        )

    def _replace(self, reader: Reader) -> None:
        """Put a new reader in the place of one that died or is stuck; the first of its jobs pays with a life."""
        self._selector.unregister(reader.socket)
        self.readers.remove(reader)
        self.restarts += 1
        if not reader.kill():
            # It may still write into its slots, so nobody else can have them.
            where = self._where(reader.jobs[0][0]) if reader.jobs else "nothing"
            raise DataError(f"the storage does not answer and holds a reader in the kernel; it was reading {where}")
        jobs = [job for job, _ in reader.jobs]
        self._start()
        if jobs:
            first = jobs[0]
            self._lives[first.number] = self._lives.get(first.number, 0) + 1
            if self._lives[first.number] >= MOST_LIVES:
                reason = (
                    f"{MOST_LIVES} reader processes in turn died or did not answer in {self._stall_timeout_s:.0f} s"
                )
                first.faults = {place: reason for place, _ in first.clips}
                first.done = True
                jobs = jobs[1:]
        for job in reversed(jobs):
            line = json.dumps({"job": job.number, "slot": job.slot, "clips": job.clips}).encode()
            self._waiting.appendleft((job, line))
        self._send_out()


def _environment() -> dict[str, str]:
    """Return the environment of a reader: this package importable, no threads in libraries."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
