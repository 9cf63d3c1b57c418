"""A reader process: takes jobs from the training process, fills slots of the shared ring, answers with slot numbers.

Started as `python -m fmri_scale.data.reader_process SOCKET RING DUMP` with three inherited file descriptors. Messages
are lines of JSON: first the setup, answered when it is ready, then jobs, each with its answer. It keeps no state but
open files, so it may be killed and replaced at any time. It imports no torch, ignores the signals that stop training
(the training process decides), writes its stacks to DUMP at SIGUSR1, and ends when its parent does.
"""

import faulthandler
import json
import mmap
import os
import queue
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from fmri_scale.data.reading import ClipReader, ReadFault
from fmri_scale.data.request import ClipRequest, SlotLayout, SlotViews
from fmri_scale.data.sources import make_source

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

PARENT_CHECK_S = 5.0
"Seconds between looks whether the parent still lives (another child of it may hold the socket open)."


def main(argv: list[str]) -> int:
    """Serve until the parent is gone."""
    channel, ring, dump = (int(text) for text in argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, file=dump, all_threads=True)
    connection = socket.socket(fileno=channel)
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, os.getppid(), lines), daemon=True).start()
    setup = lines.get()
    if setup is not None:
        _serve(Worker(json.loads(setup), ring), connection, lines)
    return 0


class Worker:
    """Reads jobs into the ring.

    Parameters
    ----------
    setup
        layout: fields of SlotLayout; source: name and arguments of the source; verify, retries: as for ClipReader;
        threads: clips of a job read at a time.
    ring
        File descriptor of the ring.
    """

    def __init__(self, setup: dict[str, Any], ring: int) -> None:
        self.layout = SlotLayout(**setup["layout"])
        source = make_source(setup["source"])
        self.reader = ClipReader(source, self.layout, setup["verify"], setup["retries"])
        self._map = mmap.mmap(ring, os.fstat(ring).st_size)
        self._threads = _threads(setup["threads"])

    def read(self, message: dict[str, Any]) -> dict[str, Any]:
        """Read a job; return the answer to it."""
        size = self.layout.slot_bytes
        memory = np.frombuffer(self._map, np.uint8, size, message["slot"] * size)
        views = self.layout.views(memory, self.layout.batch)
        clips = [(place, ClipRequest(*parts)) for place, parts in message["clips"]]
        faults: dict[int, str] = {}

        def read(clip: tuple[int, ClipRequest]) -> int:
            return self._read_clip(*clip, views, faults)

        retries = sum(map(read, clips) if self._threads is None else self._threads.map(read, clips))
        return {"job": message["job"], "faults": faults, "retries": retries}

    def _read_clip(self, place: int, request: ClipRequest, views: SlotViews, faults: dict[int, str]) -> int:
        try:
            return self.reader.read(request, views, place)
        except ReadFault as fault:
            faults[place] = str(fault)
            return self.reader.retries


def _threads(number: int) -> "ThreadPoolExecutor | None":
    if number == 1:
        return None
    from concurrent.futures import ThreadPoolExecutor  # brings logging, which local files do not need

    return ThreadPoolExecutor(number)


def _receive(connection: socket.socket, parent: int, lines: queue.SimpleQueue) -> None:
    """Put lines from the socket into the queue; end the process with its parent, even in the middle of a read."""
    rest = b""
    connection.settimeout(PARENT_CHECK_S)
    while True:
        data: bytes | None = None
        try:
            data = connection.recv(1 << 16)
        except TimeoutError:
            pass  # nothing new; look after the parent
        except OSError:
            data = b""
        if data == b"" or os.getppid() != parent:
            os._exit(0)
        *whole, rest = (rest + (data or b"")).split(b"\n")
        for line in whole:
            lines.put(line)


def _serve(worker: Worker, connection: socket.socket, lines: queue.SimpleQueue) -> None:
    connection.sendall(b'{"ready": true}\n')
    while (line := lines.get()) is not None:
        answer = worker.read(json.loads(line))
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
