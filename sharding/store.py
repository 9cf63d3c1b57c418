"""A run's frames between the passes over them: in memory while they are few, else in a scratch file.

Frames float32 (F, V) are appended once, in order, and then read in chunks as often as needed. The scratch file has no
name (it goes with the process, however that ends) and is read with plain reads, so it never counts as memory.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np

MEMORY_BYTES = 160 * 2**20
"Largest series kept in memory: a segment of 128 frames of the whole mask fits."

CHUNK_FRAMES = 16
"Frames of a chunk; fixed, because the order of sums depends on it."


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
        self._file: IO[bytes] | None = None
        if in_memory < num_frames:
            self._file = tempfile.TemporaryFile(dir=scratch, prefix="frames-", buffering=0)  # noqa: SIM115 - by close()

    def append(self, frames: np.ndarray) -> None:
        """Add float32 (F, V) after those there."""
        kept = self._memory[self._filled : self._filled + len(frames)]
        kept[:] = frames[: len(kept)]
        if self._file is not None and len(kept) < len(frames):
            _write_all(self._file, np.ascontiguousarray(frames[len(kept) :], dtype=np.float32))
        self._filled += len(frames)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Frames start to stop, float32 (stop - start, V), as a copy (into `out`, where given)."""
        frames = np.empty((stop - start, self.num_voxels), dtype=np.float32) if out is None else out
        kept = self._memory[start:stop]
        frames[: len(kept)] = kept
        if len(kept) < len(frames):
            self._seek(max(start, len(self._memory)), 0)
            _read_all(self._file, frames[len(kept) :])
        return frames

    def frame(self, number: int) -> np.ndarray:
        """One frame, float32 (V,), not to be written to."""
        return self._memory[number] if number < len(self._memory) else self.read(number, number + 1)[0]

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
        self._memory = np.empty((0, self.num_voxels), dtype=np.float32)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _seek(self, frame: int, voxel: int) -> None:
        assert self._file is not None, "store is closed"
        self._file.seek(4 * ((frame - len(self._memory)) * self.num_voxels + voxel))


_spare: list[np.ndarray] = []
"Memory of the last store that was closed: memory that is new to a process costs more than what is done with it."


def _memory(size: int) -> np.ndarray:
    """Uninitialised float32 (size,)."""
    spare = _spare.pop() if _spare else np.empty(0, dtype=np.float32)
    return spare[:size] if size <= spare.size else np.empty(size, dtype=np.float32)


def _give_back(memory: np.ndarray) -> None:
    if memory.size:  # a store that is closed again has none, and its memory may be another's by now
        whole = memory if memory.base is None else memory.base
        _spare[:] = [whole.reshape(-1)]


class Frames(Protocol):
    """What frames are read from: a `FrameStore`, or one resampled as it is read."""

    num_frames: int
    num_voxels: int

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Frames start to stop, float32 (stop - start, V), as a copy (into `out`, where given)."""

    def close(self) -> None:
        """Let go of memory and file."""


def chunks(store: Frames) -> Iterator[np.ndarray]:
    """All frames in order, in chunks of CHUNK_FRAMES, each good until the next: they share memory."""
    buffer = np.empty((min(CHUNK_FRAMES, store.num_frames), store.num_voxels), dtype=np.float32)
    for start in range(0, store.num_frames, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, store.num_frames)
        yield store.read(start, stop, buffer[: stop - start])


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
