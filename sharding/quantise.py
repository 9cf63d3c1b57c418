"""Voxelwise int8: x = unit * (offset + step * q), reversible to a part in 250 of each voxel's own range.

One scale for a whole run would leave BOLD a level or two of standard deviation and lose it to one bright vessel; with
its own offset and step every voxel keeps it. Codes are computed against the float16 values of offset and step that
are stored, so their rounding costs nothing.
"""

from dataclasses import dataclass

import numpy as np

CODE_MAX = 127

LARGEST_OFFSET = 2.0**14
"Largest offset in units; float16 ends at 65504."


@dataclass(frozen=True)
class VoxelMoments:
    """Each voxel's series over a run, all float64 (V,)."""

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def largest(self) -> float:
        """Largest absolute value of all."""
        return float(max(np.abs(self.low).max(), np.abs(self.high).max()))


def power_of_two_unit(sd: float, largest: float) -> float:
    """Unit of a run: a power of two, so that multiplying by it is exact.

    Parameters
    ----------
    sd
        Of the run; the unit is the power just above it,
    largest
        absolute value in the run, unless that would then not fit float16.
    """
    return float(2.0 ** np.ceil(np.log2(max(sd, largest / LARGEST_OFFSET))))


def voxel_scale(moments: VoxelMoments, unit: float, range_sd: float) -> tuple[np.ndarray, np.ndarray]:
    """Offset and step of every voxel, and its temporal statistics relative to them.

    Parameters
    ----------
    moments
        Of the V voxels, in the image's units.
    unit
        The run's unit.
    range_sd
        A voxel's codes reach to its extremes, but no farther than this many of its sd; beyond, they are clipped.

    Returns
    -------
    scale
        float16 (2, V): offset (the mean) and step, in units. Step 0 marks a constant voxel.
    stats
        float16 (2, V): (offset * unit - mean) / sd, 0 where sd is 0, and sd / unit.
    """
    offset = (moments.mean / unit).astype(np.float16)
    away = offset.astype(np.float64) * unit
    reach = np.maximum(np.abs(moments.high - away), np.abs(moments.low - away))
    reach = np.minimum(reach, range_sd * moments.sd + np.abs(moments.mean - away))
    sd = (moments.sd / unit).astype(np.float16)
    step = _round_up(reach / (CODE_MAX * unit))
    constant = (moments.high == moments.low) | (step == 0) | (sd == 0)
    step[constant] = 0
    sd[constant] = 0
    shift = np.zeros(offset.shape)
    np.divide(away - moments.mean, moments.sd, out=shift, where=~constant)
    # Far beyond float16 only for a voxel that all but never moves; its offset then says nothing about its series.
    return np.stack([offset, step]), np.stack([np.clip(shift, -60000, 60000).astype(np.float16), sd])


class Encoder:
    """Makes codes at a given scale.

    Parameters
    ----------
    scale
        float16 (2, V) as from `voxel_scale`.
    unit
        The run's unit.
    """

    def __init__(self, scale: np.ndarray, unit: float) -> None:
        self._per_unit = np.float32(1 / unit)
        self._offset, step = scale.astype(np.float32)
        self._per_step = np.divide(1, step, out=np.zeros_like(step), where=step > 0)

    def __call__(self, frames: np.ndarray, voxels: slice, out: np.ndarray) -> int:
        """Fill `out`, int8 (F, v), with the codes of frames float32 (F, v) of some voxels; count what was clipped."""
        values = frames * self._per_unit
        values -= self._offset[voxels]
        values *= self._per_step[voxels]
        np.rint(values, out=values)
        clipped = 0
        if max(values.max(), -values.min()) > CODE_MAX:
            clipped = int(np.count_nonzero(np.abs(values) > CODE_MAX))
            np.clip(values, -CODE_MAX, CODE_MAX, out=values)
        np.copyto(out, values, casting="unsafe")
        return clipped


def encode(frames: np.ndarray, scale: np.ndarray, unit: float) -> tuple[np.ndarray, int]:
    """Codes of frames, and how many values had to be clipped.

    Parameters
    ----------
    frames
        float32 (T, V) in the image's units.
    scale, unit
        As of `Encoder`.

    Returns
    -------
    int8 (T, V) within -127 to 127, and the count of values beyond.
    """
    codes = np.empty(frames.shape, dtype=np.int8)
    return codes, Encoder(scale, unit)(frames, slice(None), codes)


def decode(codes: np.ndarray, scale: np.ndarray, unit: float) -> np.ndarray:
    """Signal of codes int8 (T, V): float32 (T, V) in the image's units."""
    offset, step = scale.astype(np.float32)
    return np.float32(unit) * (offset + step * codes.astype(np.float32))


def _round_up(values: np.ndarray) -> np.ndarray:
    """float16 no smaller than the given values, so that a voxel's extreme still fits its codes."""
    rounded = values.astype(np.float16)
    return np.where(rounded < values, np.nextafter(rounded, np.float16(np.inf)), rounded)
