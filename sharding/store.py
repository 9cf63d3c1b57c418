"""A run's frames between the passes over them: in memory while they are few, else in a scratch file.

Frames float32 (F, V) are appended once, in order, and then read in chunks as often as needed. The scratch file has no
name (it goes with the process, however that ends) and is read with plain reads, so it never counts as memory.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np

MEMORY_BYTES = 192 * 2**20
"Largest series kept in memory: a segment of 128 frames of the whole mask fits."

CHUNK_FRAMES = 16
"Frames of a chunk; fixed, because the order of sums depends on it."

BLOCK_VOXELS = 4200
"""Voxels of a block: so few that a chunk of them, and what is made of it, stays in cache, but more than half of numpy's
buffer, below which it copies what it broadcasts."""


class FrameStore:
    """Store of float32 frames: appended in order, read by frames or by voxels.

    Parameters
    ----------
    num_frames, num_voxels
        Final shape.
    scratch
        Folder for the scratch file; None is the system's folder for temporary files.
    share
        Of MEMORY_BYTES that may be used, where a run needs more than one store.
    """

    def __init__(self, num_frames: int, num_voxels: int, scratch: Path | None = None, share: float = 1.0) -> None:
        self.num_frames, self.num_voxels = num_frames, num_voxels
        self._filled = 0
        in_memory = min(num_frames, int(share * MEMORY_BYTES) // (4 * num_voxels))
        self._memory = _memory(in_memory * num_voxels).reshape(in_memory, num_voxels)
        "The first frames; what follows is in the file."
        self._buffer = np.empty((0, num_voxels), dtype=np.float32)
        self._file: IO[bytes] | None = None
        if in_memory < num_frames:
            self._file = tempfile.TemporaryFile(dir=scratch, prefix="frames-", buffering=0)  # noqa: SIM115 - by close()

    def room(self, num_frames: int) -> np.ndarray:
        """Where to make the next frames, float32 (F, V), before they are appended: there they need no copy."""
        room = self._memory[self._filled : self._filled + num_frames]
        return room if len(room) == num_frames else self._buffered(num_frames)

    def append(self, frames: np.ndarray) -> None:
        """Add float32 (F, V) after those there."""
        kept = self._memory[self._filled : self._filled + len(frames)]
        if not np.may_share_memory(kept, frames):
            kept[:] = frames[: len(kept)]
        if self._file is not None and len(kept) < len(frames):
            _write_all(self._file, np.ascontiguousarray(frames[len(kept) :], dtype=np.float32))
        self._filled += len(frames)
        if self._filled == self.num_frames:
            self._buffer = self._buffer[:0].copy()

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Frames start to stop, float32 (stop - start, V), as a copy (into `out`, where given)."""
        frames = np.empty((stop - start, self.num_voxels), dtype=np.float32) if out is None else out
        kept = self._memory[start:stop]
        frames[: len(kept)] = kept
        if len(kept) < len(frames):
            self._seek(max(start, len(self._memory)), 0)
            _read_all(self._file, frames[len(kept) :])
        return frames

    def frames(self, start: int, stop: int) -> np.ndarray:
        """Frames start to stop, float32 (stop - start, V), not to be written to and good until the next call."""
        if stop <= len(self._memory):
            return self._memory[start:stop]
        return self.read(start, stop, self._buffered(stop - start))

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Frames start to stop by blocks, see `Frames`."""
        frames = self.frames(start, stop)
        for voxels in voxel_blocks(self.num_voxels):
            yield voxels, frames[:, voxels]

    def read_voxels(self, first: int, last: int) -> np.ndarray:
        """Series of voxels first to last, float32 (T, last - first), as a copy."""
        series = np.empty((self.num_frames, last - first), dtype=np.float32)
        kept = len(self._memory)
        series[:kept] = self._memory[:, first:last]
        for frame, row in enumerate(series[kept:], start=kept):
            self._seek(frame, first)
            _read_all(self._file, row)
        return series

    def write_voxels(self, first: int, series: np.ndarray) -> None:
        """Replace the series of voxels from `first` on by float32 (T, v)."""
        kept = len(self._memory)
        self._memory[:, first : first + series.shape[1]] = series[:kept]
        for frame, row in enumerate(np.ascontiguousarray(series[kept:], dtype=np.float32), start=kept):
            self._seek(frame, first)
            _write_all(self._file, row)

    def close(self) -> None:
        """Let go of memory and file."""
        _give_back(self._memory)
        self._memory = self._buffer = np.empty((0, self.num_voxels), dtype=np.float32)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _buffered(self, num_frames: int) -> np.ndarray:
        if len(self._buffer) < num_frames:
            self._buffer = np.empty((num_frames, self.num_voxels), dtype=np.float32)
        return self._buffer[:num_frames]

    def _seek(self, frame: int, voxel: int) -> None:
        assert self._file is not None, "store is closed"
        self._file.seek(4 * ((frame - len(self._memory)) * self.num_voxels + voxel))


_spare: list[np.ndarray] = []
"Memory of the last store that was closed: memory that is new to a process costs more than what is done with it."


def _memory(size: int) -> np.ndarray:
    """Uninitialised float32 (size,)."""
    try:
        spare = _spare.pop()
    except IndexError:  # asked for, not looked up first: another thread may take it in between
        spare = np.empty(0, dtype=np.float32)
    return spare[:size] if size <= spare.size else np.empty(size, dtype=np.float32)


def _give_back(memory: np.ndarray) -> None:
    if memory.size:  # a store that is closed again has none, and its memory may be another's by now
        whole = memory if memory.base is None else memory.base
        _spare[:] = [whole.reshape(-1)]


class Frames(Protocol):
    """What frames are read from: a `FrameStore`, or one resampled as it is read."""

    num_frames: int
    num_voxels: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames start to stop, float32 (stop - start, V), as a copy."""

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Frames start to stop, a block of voxels at a time: which voxels, and their values float32 (stop - start, v).

        Values are not to be written to, and good until the next.
        """

    def close(self) -> None:
        """Let go of memory and file."""


def chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """First and last but one of each chunk of frames from start to stop."""
    for first in range(start, stop, CHUNK_FRAMES):
        yield first, min(first + CHUNK_FRAMES, stop)


def voxel_blocks(num_voxels: int) -> Iterator[slice]:
    """Blocks of so many voxels."""
    for first in range(0, num_voxels, BLOCK_VOXELS):
        yield slice(first, min(first + BLOCK_VOXELS, num_voxels))


def by_block(voxels: np.ndarray, num_voxels: int) -> dict[int, tuple[slice, np.ndarray]]:
    """Of voxels int64 (S,), ascending, for each block (by its first voxel): which are in it, and where, int64 (s,)."""
    found = {}
    for block in voxel_blocks(num_voxels):
        own = slice(*np.searchsorted(voxels, (block.start, block.stop)))
        found[block.start] = own, voxels[own] - block.start
    return found


def _write_all(file: IO[bytes] | None, array: np.ndarray) -> None:
    """Write a C-ordered array; a raw file may take part of it."""
    assert file is not None, "store is closed"
    data = array.data.cast("B")
    while data:
        data = data[file.write(data) :]


def _read_all(file: IO[bytes] | None, array: np.ndarray) -> None:
    """Fill a C-ordered array."""
    assert file is not None, "store is closed"
    data = array.data.cast("B")
    while data:
        got = file.readinto(data)  # type: ignore[attr-defined]
        assert got, "the scratch file is shorter than what was written"
        data = data[got:]
