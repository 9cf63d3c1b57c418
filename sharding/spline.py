"""Cubic splines in space: nilearn's interpolation `continuous`, for images off the lattice, at the stored voxels only.

In: frames of an image. Out: the same at the wanted voxels of the grid. Splines keep fine detail that trilinear weights
blur (99 % of the sd of fields 5 mm smooth, instead of 87 %), at 40 times the work (0.06 s a frame), and can overshoot
at edges: an option, while the default is fast and as published.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sharding.grid import Frame, Sampler, grid_coordinates, grid_sampler


@dataclass(frozen=True)
class SplineSampler(Sampler):
    """A `Sampler` whose values come from cubic splines through all voxels of a frame."""

    frame: Frame
    coordinates: np.ndarray
    "float64 (3, N): where the wanted voxels lie, in RAS voxels of the image."

    def __call__(self, frames: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Bring frames float32 (F, num_source) to the wanted voxels: float32 (F, N) (in `out`, if given), 0 outside."""
        limits = np.array(self.frame.ras_shape)[:, None] - 1
        where = np.clip(self.coordinates, 0, limits)
        out = np.empty((len(frames), self.take.size), dtype=np.float32) if out is None else out
        for values, frame in zip(out, frames, strict=True):
            # In RAS order, so that copies stored otherwise give the same bits.
            coefficients = ndimage.spline_filter(self._ras(frame), order=3, output=np.float64)
            ndimage.map_coordinates(coefficients, where, values, order=3, mode="mirror", prefilter=False)
        out[:, self.take < 0] = 0
        return out

    def _ras(self, frame: np.ndarray) -> np.ndarray:
        """A flat frame (x fastest) as a volume with axes right, anterior, superior."""
        volume = frame.reshape(self.frame.shape, order="F")
        volume = np.flip(volume, tuple(axis for axis in range(3) if self.frame.flipped[axis]))
        return np.ascontiguousarray(volume.transpose([self.frame.axis.index(axis) for axis in range(3)]))


def spline_sampler(frame: Frame, wanted: np.ndarray) -> Sampler:
    """As `grid_sampler`, but with splines where the image is off the lattice."""
    linear = grid_sampler(frame, wanted)
    if linear.exact:
        return linear
    return SplineSampler(False, linear.take, None, frame, grid_coordinates(frame, wanted))
