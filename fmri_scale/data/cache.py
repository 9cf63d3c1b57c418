"""A bounded folder of pieces of remote shards, shared by all processes of a machine.

A piece is a file named by the sha256 of what it is (URL, the shard's recorded hash and size, which part), so names
cannot collide, and a shard that was replaced in the store is another piece. A file appears under its name only when
whole. When the folder is over its size, what was used longest ago goes. Only files named by this module are ever
touched, so a folder that holds other things keeps them.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fmri_scale.log import get_logger

PIECE = re.compile(r"[0-9a-f]{64}")
PARTIAL = re.compile(r"[0-9a-f]{64}\.part-\d+")
SLACK = 0.9
"Share of the limit to which the cache is brought when it is over."

STALE_S = 3600.0
"Age at which the unfinished piece of a process that is gone is removed."


def piece_name(*facts: object) -> str:
    """Return the name of the piece that these facts describe."""
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()


class Cache:
    """Pieces in `folder`, of at most `limit_bytes` together; a piece that alone is larger is not refused.

    Raises
    ------
    OSError
        The folder cannot be made.
    """

    def __init__(self, folder: str | Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = self.misses = 0
        self._unaccounted = limit_bytes  # so that the first piece is followed by a look at the whole folder

    def open(self, name: str, fetch: Callable[[int], None]) -> int:
        """Return a descriptor of a piece, which the caller closes; `fetch(descriptor)` writes it where it is absent.

        Processes that want the same piece at the same time wait for one of them to fetch it. What `fetch` raises
        comes through, and leaves no piece.
        """
        path = self._path(name)
        file = self._open_present(path)
        if file is not None:
            self.hits += 1
            return file
        path.parent.mkdir(exist_ok=True)
        with self._locked(name):
            file = self._open_present(path)
            if file is not None:
                return file
            self.misses += 1
            self._make(path, fetch)
            file = self._open_present(path)
        if file is None:
            raise FileNotFoundError(f"{path}: removed while it was being opened; is the cache too small?")
        self._account(os.fstat(file).st_size)
        return file

    def drop(self, name: str) -> None:
        """Remove a piece that turned out wrong."""
        self._path(name).unlink(missing_ok=True)

    def pieces(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield every piece and unfinished piece with its facts."""
        for shelf in self.folder.iterdir():
            if len(shelf.name) == 2 and shelf.is_dir():
                for path in shelf.iterdir():
                    if PIECE.fullmatch(path.name) or PARTIAL.fullmatch(path.name):
                        with contextlib.suppress(FileNotFoundError):
                            yield path, path.stat()

    def _path(self, name: str) -> Path:
        assert PIECE.fullmatch(name), name
        return self.folder / name[:2] / name

    def _open_present(self, path: Path) -> int | None:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of use: access times are switched off on many file systems
        return file

    def _make(self, path: Path, fetch: Callable[[int], None]) -> None:
        partial = path.with_name(f"{path.name}.part-{os.getpid()}")
        try:
            file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                fetch(file)
            finally:
                os.close(file)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the lock of a piece among processes: one of 256 files, so that locks do not pile up."""
        file = os.open(self.folder / f"lock-{name[:2]}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _account(self, added: int) -> None:
        """Look at the folder's size now and then: when this process alone may have added a tenth of the limit."""
        self._unaccounted += added
        if self._unaccounted > (1 - SLACK) * self.limit_bytes:
            self._unaccounted = 0
            self.tidy()

    def tidy(self) -> None:
        """Remove what was used longest ago until the folder is within its size, and what dead processes left."""
        found = []
        for path, facts in self.pieces():
            if PIECE.fullmatch(path.name):
                found.append((facts.st_mtime_ns, facts.st_size, path))
            elif time.time() - facts.st_mtime > STALE_S:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in found)
        if total <= self.limit_bytes:
            return
        for _, size, path in sorted(found)[:-1]:
            path.unlink(missing_ok=True)
            total -= size
            if total <= SLACK * self.limit_bytes:
                break
        get_logger(__name__).debug("%s brought to %.1f GB", self.folder, total / 1e9)
