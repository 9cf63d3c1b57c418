"""Write a shard: a plain WebDataset tar that appears under its name only when whole, with the same bytes every time.

In: samples as a key and its members. Out: the shard with its size and sha256. The tar is USTAR with no times or owners,
written beside its place, synced, and renamed.
"""

import errno
import hashlib
import math
import os
import tarfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from sharding.errors import ShardingError
from sharding.format import NPY_HEADER_BYTES, SUFFIXES, is_key
from sharding.tar import end_bytes, member_header, padding

Buffer = bytes | memoryview


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as .npy (format 1.0, C order) with a header of exactly NPY_HEADER_BYTES."""
    return _npy_header(array.shape, array.dtype) + np.ascontiguousarray(array).tobytes()


def npy_empty(
    shape: tuple[int, ...], dtype: np.dtype, within: memoryview | None = None
) -> tuple[memoryview, np.ndarray]:
    """The bytes of a .npy, as `npy_bytes` gives them, and its array, yet to be filled; in memory given, if any."""
    size = NPY_HEADER_BYTES + math.prod(shape) * dtype.itemsize
    whole = np.empty(size, dtype=np.uint8) if within is None else np.frombuffer(within, dtype=np.uint8)[:size]
    whole[:NPY_HEADER_BYTES] = np.frombuffer(_npy_header(shape, dtype), dtype=np.uint8)
    return whole.data, whole[NPY_HEADER_BYTES:].view(dtype).reshape(shape)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    fields = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    length = NPY_HEADER_BYTES - 10
    assert len(fields) < length, fields
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + f"{fields:<{length - 1}}\n".encode()


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
        self.places: dict[str, tuple[int, int]] = {}
        "Every member so far: name to (offset of its payload, bytes)."
        self._tmp = unfinished(scratch / path.name)
        self._file = self._tmp.open("wb")
        self._sha256, self._size = hashlib.sha256(), 0

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self._file.close()
        finally:  # closing flushes, and fails once more where the disk is full
            self._tmp.unlink(missing_ok=True)

    def add(self, key: str, members: Mapping[str, Buffer]) -> None:
        """Append a sample; `members` maps every suffix of the format to bytes."""
        if not is_key(key) or tuple(sorted(members)) != SUFFIXES:
            raise ShardingError(f"sample {key!r} with members {sorted(members)} does not fit the format")
        for suffix in SUFFIXES:
            name, data = key + suffix, members[suffix]
            self._write(member_header(name, len(data)))
            self.places[name] = self._size, len(data)
            self._write(data)
            self._write(bytes(padding(len(data))))

    def finish(self) -> tuple[int, str]:
        """Close, sync and name the shard; return its bytes and sha256."""
        self._write(bytes(end_bytes(self._size)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._tmp, self.path)
        sync_folder(self.path.parent)
        return self._size, self._sha256.hexdigest()

    def _write(self, data: Buffer) -> None:
        self._sha256.update(data)
        self._size += len(data)
        self._file.write(data)


def member_places(shard: Path) -> dict[str, tuple[int, int]]:
    """Every member of a shard: name to (offset of its payload, bytes), read from the tar's own headers."""
    with tarfile.open(shard, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def write_whole(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file that appears under its name only when whole, with these permissions if any are given."""
    tmp = unfinished(path.with_name(f".{path.name}"))
    try:
        with tmp.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    sync_folder(path.parent)


def unfinished(path: Path) -> Path:
    """Name for a file that is being written, which no other process on any machine uses."""
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:16]}")


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder outlive a power cut, as far as its file system can (some network ones cannot)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)
