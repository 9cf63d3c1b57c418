"""Time: the repetition time of a run, and its resampling, frame by frame as they arrive.

A `TimeResampler` takes float32 frames (F, V) spaced by the run's TR and gives frames spaced by the target TR, starting
with the first, by a windowed sinc: up-sampling keeps what the frames hold (a wave of 0.1 Hz at TR 2 s within 1 %;
linear interpolation takes 12 % of it), down-sampling cuts at the target's Nyquist frequency, so nothing aliases.
Up-sampling can be linear, as published. All is symmetric in time: no phase shift. Frames no longer needed are let go.
"""

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import sparse

from sharding.errors import InputError
from sharding.read import ImageInfo
from sharding.store import FrameStore, voxel_blocks

MIN_TR_S, MAX_TR_S = 0.05, 20.0
"Repetition times that an fMRI run can have."

SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}

UNSEEN = 1e-9
"A weight that no float32 sum sees."

LOBES = 4
"Zero crossings of the kernel on either side."


def repetition_time(info: ImageInfo, given: float | None = None) -> tuple[float, str]:
    """Repetition time of a run in s, and where it comes from.

    Parameters
    ----------
    info
        The opened image.
    given
        What the user says, in s; goes before the sidecar (RepetitionTime of FILE.json), and this before the header.

    Raises
    ------
    InputError
        No plausible value: it is 0, absurd, or in a unit that is no time.
    """
    if given is not None:
        return _plausible(info.path, given, f"--tr, table or sidecar says {given:g} s"), "given"
    sidecar = _sidecar_tr(info.path)
    if sidecar is not None:
        return _plausible(info.path, sidecar, f"sidecar says {sidecar:g} s"), "sidecar"
    factor = SECONDS_PER_UNIT.get(info.frame_unit)
    said = f"header says pixdim {info.frame_step:g} in unit {info.frame_unit}"
    if factor is None:
        raise InputError(f"{info.path}: TR unknown: {said}, which is no time; give --tr SECONDS or a tr column")
    return _plausible(info.path, info.frame_step * factor, said), "header"


def header_tr(info: ImageInfo) -> float | None:
    """What the header says, in s; None where its unit is no time."""
    factor = SECONDS_PER_UNIT.get(info.frame_unit)
    return None if factor is None else round(info.frame_step * factor, 6)


def _plausible(path: Path, tr: float, said: str) -> float:
    if not (math.isfinite(tr) and MIN_TR_S <= tr <= MAX_TR_S):
        hint = f" (in milliseconds it would be {tr / 1000:g} s)" if MIN_TR_S <= tr / 1000 <= MAX_TR_S else ""
        raise InputError(
            f"{path}: TR {tr:g} s ({said}) is not within {MIN_TR_S:g} to {MAX_TR_S:g} s{hint}; "
            "give --tr SECONDS or a tr column"
        )
    return round(tr, 6)  # headers hold float32: 0.72 reads as 0.7200000286


def _sidecar_tr(path: Path) -> float | None:
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not sidecar.is_file():
        return None
    try:
        value = json.loads(sidecar.read_text(encoding="utf-8")).get("RepetitionTime")
        return None if value is None else float(value)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{sidecar}: sidecar cannot be read ({error}); repair it or give --tr SECONDS") from error


def resampled_frames(num_frames: int, tr: float, target_tr: float) -> int:
    """Frames at `target_tr` from the first frame to no later than the last (both in s)."""
    return math.floor((num_frames - 1) * tr / target_tr + 1e-6) + 1


class TimeResampler:
    """Resample a stream of frames in time.

    Parameters
    ----------
    num_frames
        Frames that will be pushed.
    tr, target_tr
        Spacing of frames in and out, in s.
    kind
        sinc, or linear, which is meant for up-sampling alone.
    """

    def __init__(self, num_frames: int, tr: float, target_tr: float, kind: str = "sinc") -> None:
        self.num_in = num_frames
        self.num_out = resampled_frames(num_frames, tr, target_tr)
        self.grows = self.num_out > num_frames
        self._ratio = target_tr / tr
        self.keeps = abs(self._ratio - 1) < 1e-6
        "Whether frames stay as they are."
        self._linear = kind == "linear" and self._ratio <= 1
        self._kept: list[np.ndarray] = []
        self._first_kept = 0
        self._next_out = 0

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Take the next frames float32 (F, V); return those that can now be made, float32 (G, V), G from 0."""
        if self.keeps:
            return frames
        self._kept.extend(frames)
        start = stop = self._next_out
        while stop < self.num_out and self.taps(stop)[0][-1] < self._first_kept + len(self._kept):
            stop += 1
        out = np.empty((stop - start, frames.shape[1]), dtype=np.float32)
        if stop > start:
            first, weights = self.weights(start, stop)
            used = self._kept[first - self._first_kept :][: weights.shape[1]]
            for voxels in voxel_blocks(frames.shape[1]):
                out[:, voxels] = weigh(weights, np.stack([frame[voxels] for frame in used]))
        self._next_out = stop
        if stop < self.num_out:
            self._forget(int(self.taps(stop)[0][0]))
        return out

    def weights(self, start: int, stop: int) -> tuple[int, sparse.csr_array]:
        """Output frames start to stop: the first input frame K, and float32 weights (stop - start, K) from it on."""
        taps, weights = zip(*(self.taps(frame) for frame in range(start, stop)), strict=True)
        indices, ends = np.concatenate(taps), np.cumsum([len(some) for some in taps])
        first = int(indices.min())
        shape = (stop - start, int(indices.max()) - first + 1)
        return first, sparse.csr_array((np.concatenate(weights), indices - first, np.concatenate([[0], ends])), shape)

    def taps(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Input frames int64 (K,) and float32 weights (K,), summing to 1, that make output frame `frame`."""
        position = min(frame * self._ratio, self.num_in - 1.0)
        if self._linear:
            low = min(math.floor(position + 1e-9), self.num_in - 1)
            upper = max(position - low, 0.0)
            if upper < 1e-9 or low == self.num_in - 1:
                return np.array([low]), np.ones(1, dtype=np.float32)
            return np.array([low, low + 1]), np.array([1 - upper, upper], dtype=np.float32)
        spacing = max(1.0, self._ratio)  # of the kernel's zero crossings, in frames
        reach = LOBES * spacing
        taps = np.arange(max(0, math.ceil(position - reach)), min(self.num_in - 1, math.floor(position + reach)) + 1)
        distance = (taps - position) / spacing
        weights = np.sinc(distance) * (0.5 + 0.5 * np.cos(np.pi * distance / LOBES))
        weights /= weights.sum()
        seen = np.abs(weights) > UNSEEN  # of a frame that falls on one of the input, all others have none
        return taps[seen], weights[seen].astype(np.float32)

    def _forget(self, first: int) -> None:
        del self._kept[: max(0, first - self._first_kept)]
        self._first_kept = max(self._first_kept, first)


class Upsampled:
    """Frames at the target TR, made from a store of those at the source's TR whenever they are read.

    Where a run grows by resampling, that is less work than keeping what it grows to.

    Parameters
    ----------
    store
        Frames at the source's TR.
    resampler
        To the target TR.
    """

    def __init__(self, store: FrameStore, resampler: TimeResampler) -> None:
        self._store, self._resampler = store, resampler
        self.num_frames, self.num_voxels = resampler.num_out, store.num_voxels

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames start to stop, float32 (stop - start, V), as a copy."""
        frames = np.empty((stop - start, self.num_voxels), dtype=np.float32)
        for voxels, block in self.blocks(start, stop):
            frames[:, voxels] = block
        return frames

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Frames start to stop by blocks, see `store.Frames`."""
        first, weights = self._resampler.weights(start, stop)
        frames = self._store.frames(first, first + weights.shape[1])
        for voxels in voxel_blocks(self.num_voxels):
            yield voxels, weigh(weights, frames[:, voxels])

    def close(self) -> None:
        """Let go of memory and file."""
        self._store.close()


def weigh(weights: sparse.csr_array, frames: np.ndarray) -> np.ndarray:
    """Make float32 (G, v) from frames float32 (K, v) by weights (G, K): products, rounded, summed in the order of time.

    So few voxels that they stay in cache.
    """
    if _scipy_rounds_products():
        return weights @ frames
    rows = zip(weights.indptr, weights.indptr[1:], strict=False)
    parts = [(frames[weights.indices[a:b]], weights.data[a:b, None]) for a, b in rows]
    return np.stack([np.add.reduce(some * weight, axis=0) for some, weight in parts])


@functools.cache
def _scipy_rounds_products() -> bool:
    """Whether scipy was built without fused multiplication and addition, which on some processors is the default."""
    fine = np.float32(1 + 2**-12)  # its square ends in a bit that float32 has no room for
    weights = sparse.csr_array(np.array([[1, fine]], dtype=np.float32))
    left = weights @ np.array([[-fine * fine] * 67, [fine] * 67])
    return not left.any()
