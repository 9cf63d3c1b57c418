"""Holes in the data: NaN and Inf, mended as frames arrive, and counted where they matter.

In: frames float32 (F, voxels) in file order. Out: the same without NaN and Inf. Whether too much is missing is for the
caller to judge.
"""

import numpy as np

from sharding.grid import Sampler


class Cleaner:
    """Replaces NaN and Inf by the voxel's last finite value (0 before the first), and counts them.

    Parameters
    ----------
    num_voxels
        Of a frame.
    sampler
        Says which voxels are used; others are mended but not counted.
    """

    def __init__(self, num_voxels: int, sampler: Sampler) -> None:
        self._sampler = sampler
        self._used = sampler.used(num_voxels)
        self._last = np.zeros(num_voxels, dtype=np.float32)
        self._never = np.ones(num_voxels, dtype=bool)
        "Voxels without any finite value so far."
        self.replaced = 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Mend frames float32 (F, voxels) in place; they follow those of the call before."""
        # A sum is finite only where all values are; where it overflows, the values are looked at one by one.
        if np.isfinite(np.add.reduce(frames, axis=None)):
            self._never[:] = False
        else:
            finite = np.isfinite(frames)
            for frame, good in zip(frames, finite, strict=True):
                frame[~good] = self._last[~good]
                self._last = frame
            self._never &= ~finite.any(axis=0)
            self.replaced += int(np.count_nonzero(~finite[:, self._used]))
        self._last = frames[-1].copy()
        return frames

    def missing(self, brain: np.ndarray) -> float:
        """Share of the brain's voxels (bool (V,)) that were never finite so far."""
        return float(self._sampler.nearest(self._never)[brain].mean())
