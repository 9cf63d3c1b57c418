"""Clean series in time, by nilearn: confounds regressed out, slow or fast changes filtered out, scrubbed frames filled.

In: a run's frames at the stored voxels and at its own TR, in a `FrameStore`, changed in place. A block of voxels is
taken through all frames at a time, so that memory does not grow with the length of a run. Each voxel keeps its mean:
what is regressed and filtered is its change. Time stays regular: a scrubbed frame is filled in linearly from the
nearest kept ones, not cut out.
"""

import numpy as np

from sharding.confounds import Confounds
from sharding.errors import InputError
from sharding.preprocessing import PreprocessingSettings
from sharding.store import FrameStore

BLOCK_BYTES = 6 * 2**20
"Size of a block of series as float32; nilearn makes several float64 copies of it."

MIN_KEPT = 0.5
"Least share of a run's frames that must be left by scrubbing."

MIN_FILTERED = 34
"Fewest volumes of a run to be filtered: the filter's run-up at either end is 33."


def clean_store(
    store: FrameStore, confounds: Confounds | None, settings: PreprocessingSettings, tr: float, name: str
) -> int:
    """Clean all series of a run.

    Parameters
    ----------
    store
        Frames float32 (T, V), changed in place.
    confounds
        What to take out; None where only filters are asked for.
    settings
        Filters in Hz.
    tr
        Spacing of the frames in s.
    name
        Of the run's file, for messages.

    Returns
    -------
    Frames filled in.

    Raises
    ------
    InputError
        Filters, confounds or scrubbing leave nothing of the run.
    """
    keep = np.ones(store.num_frames, dtype=bool) if confounds is None else confounds.keep
    columns = None if confounds is None or not confounds.columns.shape[1] else confounds.columns
    _check(keep, columns, settings, tr, name)
    columns = None if columns is None else _filtered(columns, settings, tr)[keep]
    width = max(1, BLOCK_BYTES // (4 * store.num_frames))
    for first in range(0, store.num_voxels, width):
        last = min(first + width, store.num_voxels)
        store.write_voxels(first, _cleaned(store.read_voxels(first, last), columns, keep, settings, tr))
    return int((~keep).sum())


def _check(keep: np.ndarray, columns: np.ndarray | None, settings: PreprocessingSettings, tr: float, name: str) -> None:
    if keep.mean() < MIN_KEPT:
        raise InputError(f"{name}: scrubbing leaves {int(keep.sum())} of {keep.size} frames, at least half expected")
    if columns is not None and columns.shape[1] >= keep.sum() - 1:
        raise InputError(
            f"{name}: {columns.shape[1]} confounds for {int(keep.sum())} frames leave nothing of it; choose fewer"
        )
    for cut in (settings.high_pass_hz, settings.low_pass_hz):
        if cut and cut >= 0.5 / tr:
            raise InputError(f"{name}: a filter at {cut:g} Hz is beyond the {0.5 / tr:g} Hz that TR {tr:g} s can hold")
    if keep.size < MIN_FILTERED and (settings.high_pass_hz or settings.low_pass_hz):
        raise InputError(f"{name}: {keep.size} volumes are too few to be filtered, {MIN_FILTERED} expected")


def _cleaned(
    series: np.ndarray, columns: np.ndarray | None, keep: np.ndarray, settings: PreprocessingSettings, tr: float
) -> np.ndarray:
    """Clean a block of series, float32 (T, v); columns are filtered already, and of the kept frames alone."""
    from nilearn.signal import clean  # here, because a build without cleaning needs none of it

    mean = series[keep].mean(axis=0, dtype=np.float64)
    changed = series - mean
    if not keep.all():
        changed = _filled(changed[keep], keep)  # a filter would smear what is scrubbed into its neighbours
    changed = _filtered(changed, settings, tr)[keep]
    if columns is not None:
        changed = clean(changed, detrend=False, standardize=None, confounds=columns, filter=False)
    changed += mean
    return (changed if keep.all() else _filled(changed, keep)).astype(np.float32)


def _filtered(series: np.ndarray, settings: PreprocessingSettings, tr: float) -> np.ndarray:
    """Series or confounds float64 (T, v) through the filters, as nilearn's clean does, but many at a time."""
    if settings.high_pass_hz is None and settings.low_pass_hz is None:
        return series
    from nilearn.signal import butterworth, clean

    if settings.high_pass_hz is not None:
        series = clean(series, detrend=True, standardize=None, filter=False)
    return butterworth(series, 1 / tr, settings.low_pass_hz, settings.high_pass_hz, copy=True)


def _filled(kept: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Kept frames (K, v) at their places among T, the others linear between them: (T, v)."""
    places = np.flatnonzero(keep)
    right = np.clip(np.searchsorted(places, np.arange(keep.size)), 0, len(places) - 1)
    left = np.where(places[right] > np.arange(keep.size), np.maximum(right - 1, 0), right)
    span = np.maximum(places[right] - places[left], 1)
    upper = np.clip((np.arange(keep.size) - places[left]) / span, 0, 1)[:, None]
    return kept[left] * (1 - upper) + kept[right] * upper
