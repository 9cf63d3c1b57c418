"""How well a run's codes keep its series: the temporal correlation of what is stored and what decodes from it.

In: frames before quantisation and their codes, segment by segment. Out: a correlation for each of a fixed sample of
the brain's voxels. Sums are of differences from the voxel's offset, in float64, so that nothing cancels.
"""

import numpy as np

from sharding.store import by_block

SAMPLED_VOXELS = 8192
"Voxels looked at, evenly spread over the brain: enough for a median and a percentile, at next to no cost."


class RoundTrip:
    """Sums over frames of a run's sampled voxels.

    Parameters
    ----------
    brain
        bool (V,): where voxels are sampled.
    scale
        float16 (2, V): offset and step in units.
    unit
        The run's unit.
    """

    def __init__(self, brain: np.ndarray, scale: np.ndarray, unit: float) -> None:
        inside = np.flatnonzero(brain)
        self._voxels = inside[:: max(1, inside.size // SAMPLED_VOXELS)]
        self._offset, self._step = scale[:, self._voxels].astype(np.float64) * unit
        self._places = by_block(self._voxels, brain.size)
        self._sums = np.zeros((6, self._voxels.size))

    def add(self, frames: np.ndarray, codes: np.ndarray, first: int = 0) -> None:
        """Take frames float32 (F, v) and their codes int8 (F, v) of the block of voxels that begins with `first`."""
        own, places = self._places[first]
        x = frames[:, places] - self._offset[own]
        y = codes[:, places] * self._step[own]
        self._sums[0, own] += len(x)
        self._sums[1:, own] += np.array([x, y, x * x, y * y, x * y]).sum(axis=1)

    def correlations(self) -> np.ndarray:
        """Correlation of each sampled voxel that changes in time."""
        n, x, y, xx, yy, xy = self._sums
        n = np.maximum(n, 1)
        spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
        moving = spread > 0
        return (xy - x * y / n)[moving] / spread[moving]
