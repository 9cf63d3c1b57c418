"""Time: the repetition time of a run, and its resampling, frame by frame as they arrive.

A `TimeResampler` takes float32 frames (F, V) spaced by the run's TR and gives frames spaced by the target TR, starting
with the first, by a windowed sinc: up-sampling keeps what the frames hold (a wave of 0.1 Hz at TR 2 s within 1 %;
linear interpolation takes 12 % of it), down-sampling cuts at the target's Nyquist frequency, so nothing aliases.
Up-sampling can be linear, as published. All is symmetric in time: no phase shift. Frames no longer needed are let go.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sharding.errors import InputError
from sharding.read import ImageInfo
from sharding.store import FrameStore

MIN_TR_S, MAX_TR_S = 0.05, 20.0
"Repetition times that an fMRI run can have."

SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}

BLOCK_VOXELS = 16384
"Voxels resampled together."

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
        self._identity = abs(self._ratio - 1) < 1e-6
        self._linear = kind == "linear" and self._ratio <= 1
        self._kept: list[np.ndarray] = []
        self._first_kept = 0
        self._next_out = 0

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Take the next frames float32 (F, V); return those that can now be made, float32 (G, V), G from 0."""
        if self._identity:
            return frames
        self._kept.extend(frames)
        plan: list[tuple[np.ndarray, np.ndarray]] = []
        while self._next_out + len(plan) < self.num_out:
            taps, weights = self.taps(self._next_out + len(plan))
            if taps[-1] >= self._first_kept + len(self._kept):
                break
            plan.append((taps, weights))
        out = np.empty((len(plan), frames.shape[1]), dtype=np.float32)
        weigh(self._kept, self._first_kept, plan, out)
        self._next_out += len(plan)
        if self._next_out < self.num_out:
            self._forget(int(self.taps(self._next_out)[0][0]))
        return out

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
        self._kept: list[np.ndarray] = []
        self._first_kept = 0

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Frames start to stop, float32 (stop - start, V), as a copy (into `out`, where given)."""
        frames = np.empty((stop - start, self.num_voxels), dtype=np.float32) if out is None else out
        plan = [self._resampler.taps(frame) for frame in range(start, stop)]
        first, last = min(int(taps[0]) for taps, _ in plan), max(int(taps[-1]) for taps, _ in plan)
        there = {self._first_kept + number: frame for number, frame in enumerate(self._kept)}
        self._kept = [there[n] if n in there else self._store.frame(n) for n in range(first, last + 1)]
        self._first_kept = first
        weigh(self._kept, first, plan, frames)
        return frames

    def close(self) -> None:
        """Let go of memory and file."""
        self._kept = []
        self._store.close()


def weigh(kept: list[np.ndarray], first: int, plan: Sequence[tuple[np.ndarray, np.ndarray]], out: np.ndarray) -> None:
    """Make frames from others, a block of voxels at a time, small enough to stay in cache.

    Parameters
    ----------
    kept
        float32 (V,) each: the input frames from `first` on.
    plan
        Input frames and their weights (see `TimeResampler.taps`) for each output frame.
    out
        float32 (G, V), filled.
    """
    term = np.empty(BLOCK_VOXELS, dtype=np.float32)
    for start in range(0, out.shape[1], BLOCK_VOXELS):
        voxels = slice(start, start + BLOCK_VOXELS)
        rows = [frame[voxels] for frame in kept]
        some = term[: rows[0].size]
        for frame, (taps, weights) in zip(out[:, voxels], plan, strict=True):
            np.multiply(rows[taps[0] - first], weights[0], out=frame)
            for tap, weight in zip(taps[1:], weights[1:], strict=True):
                np.multiply(rows[tap - first], weight, out=some)
                frame += some
