"""What a launch prints: following a growing log file, and noticing in pdsh's messages that a node has ended."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_ENDED = re.compile(rb"^pdsh@\S+: (\S+): ssh exited with exit code (\d+)")


class Follower:
    """Copies what is appended to the newest file that matches a pattern to stdout, as `tail -f` does."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self._folder, self._pattern = folder, pattern
        self._old = set(folder.glob(pattern))
        self._file: BinaryIO | None = None

    def poll(self) -> None:
        """Copy what is new."""
        if self._file is None:
            fresh = sorted(set(self._folder.glob(self._pattern)) - self._old)
            if not fresh:
                return
            self._file = fresh[-1].open("rb")
        while block := self._file.read(1 << 16):
            sys.stdout.buffer.write(block)
        sys.stdout.flush()

    def close(self) -> None:
        """Copy the rest and close the file."""
        self.poll()
        if self._file:
            self._file.close()


class NodeEnds:
    """Passes a launcher's stderr through and calls `on_end(host, code)` for each node that ended with an error.

    pdsh waits for all nodes: it tells of the first that fails, and goes on while the others wait for it in vain.
    """

    def __init__(self, handle: int, on_end: Callable[[str, int], None]) -> None:
        self._handle, self._on_end, self._rest = handle, on_end, b""
        os.set_blocking(handle, False)

    def poll(self) -> None:
        """Pass on what has come in."""
        while True:
            try:
                block = os.read(self._handle, 1 << 16)
            except BlockingIOError:
                return
            if not block:
                return
            sys.stderr.buffer.write(block)
            sys.stderr.flush()
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                match = _ENDED.match(line)
                if match:
                    self._on_end(match[1].decode(), int(match[2]))
