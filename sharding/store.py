"""A run's frames between the passes over them: in memory while they are few, else in a scratch file.

Frames float32 (F, V) are appended once, in order, and then read in chunks as often as needed. The scratch file has no
name (it goes with the process, however that ends) and is read with plain reads, so it never counts as memory.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
    """

    def __init__(self, num_frames: int, num_voxels: int, scratch: Path | None = None) -> None:
        self.num_frames, self.num_voxels = num_frames, num_voxels
        self._filled = 0
        self._memory: np.ndarray | None = None
        self._file: IO[bytes] | None = None
        if 4 * num_frames * num_voxels <= MEMORY_BYTES:
            self._memory = np.empty((num_frames, num_voxels), dtype=np.float32)
        else:
            self._file = tempfile.TemporaryFile(dir=scratch, prefix="frames-")  # noqa: SIM115 - closed by close()

    def append(self, frames: np.ndarray) -> None:
        """Add float32 (F, V) after those there."""
        if self._memory is not None:
            self._memory[self._filled : self._filled + len(frames)] = frames
        elif self._file is not None:
            self._file.write(np.ascontiguousarray(frames, dtype=np.float32).data)
        self._filled += len(frames)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames start to stop, float32 (stop - start, V), as a copy."""
        if self._memory is not None:
            return self._memory[start:stop].copy()
        assert self._file is not None, "store is closed"
        self._file.seek(4 * start * self.num_voxels)
        data = self._file.read(4 * (stop - start) * self.num_voxels)
        return np.frombuffer(bytearray(data), dtype=np.float32).reshape(stop - start, self.num_voxels)

    def read_voxels(self, first: int, last: int) -> np.ndarray:
        """Series of voxels first to last, float32 (T, last - first), as a copy."""
        if self._memory is not None:
            return self._memory[:, first:last].copy()
        assert self._file is not None, "store is closed"
        series = np.empty((self.num_frames, last - first), dtype=np.float32)
        for frame, row in enumerate(series):
            self._file.seek(4 * (frame * self.num_voxels + first))
            row[:] = np.frombuffer(self._file.read(row.nbytes), dtype=np.float32)
        return series

    def write_voxels(self, first: int, series: np.ndarray) -> None:
        """Replace the series of voxels from `first` on by float32 (T, v)."""
        if self._memory is not None:
            self._memory[:, first : first + series.shape[1]] = series
            return
        assert self._file is not None, "store is closed"
        for frame, row in enumerate(np.ascontiguousarray(series, dtype=np.float32)):
            self._file.seek(4 * (frame * self.num_voxels + first))
            self._file.write(row.data)

    def chunks(self) -> Iterator[np.ndarray]:
        """All frames in order, in chunks of CHUNK_FRAMES."""
        for start in range(0, self.num_frames, CHUNK_FRAMES):
            yield self.read(start, min(start + CHUNK_FRAMES, self.num_frames))

    def close(self) -> None:
        """Let go of memory or file."""
        self._memory = None
        if self._file is not None:
            self._file.close()
            self._file = None
