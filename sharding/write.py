"""Write a shard: a plain WebDataset tar that appears under its name only when whole, with the same bytes every time.

In: samples as a key and its members. Out: the shard with its size and sha256. The tar is USTAR with no times or owners,
written beside its place, synced, and renamed.
"""

import hashlib
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from sharding.errors import ShardingError
from sharding.format import NPY_HEADER_BYTES, SUFFIXES, is_key


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as .npy (format 1.0, C order) with a header of exactly NPY_HEADER_BYTES."""
    array = np.ascontiguousarray(array)
    fields = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    length = NPY_HEADER_BYTES - 10
    assert len(fields) < length, fields
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + f"{fields:<{length - 1}}\n".encode() + array.tobytes()


class ShardFile:
    """A shard being written; use as a context manager. Leaving it without `finish` leaves nothing behind.

    Parameters
    ----------
    path
        Final name.
    scratch
        Folder on the same file system for the unfinished file.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        import webdataset  # here, because it imports torch, which nothing else in this package needs

        self._tmp = scratch / f"{path.name}.tmp-{os.getpid()}"
        self._file = _Hashing(self._tmp.open("wb"))
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0, user="", group="")

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self._file.close()
        finally:  # closing flushes, and fails once more where the disk is full
            self._tmp.unlink(missing_ok=True)

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Append a sample; `members` maps every suffix of the format to bytes."""
        if not is_key(key) or tuple(sorted(members)) != SUFFIXES:
            raise ShardingError(f"sample {key!r} with members {sorted(members)} does not fit the format")
        self._tar.write({"__key__": key, **{suffix[1:]: data for suffix, data in members.items()}})

    def finish(self) -> tuple[int, str]:
        """Close, sync and name the shard; return its bytes and sha256."""
        self._tar.close()
        self._file.sync()
        os.replace(self._tmp, self.path)
        sync_folder(self.path.parent)
        return self._file.size, self._file.sha256.hexdigest()


def member_places(shard: Path) -> dict[str, tuple[int, int]]:
    """Every member of a shard: name to (offset of its payload, bytes), read from the tar's own headers."""
    with tarfile.open(shard, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when whole."""
    tmp = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with tmp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Hashing:
    """A file that hashes what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        if self._file.closed:  # an abandoned tar flushes its buffer once more when it is deleted
            return len(data)
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        self._file.close()
