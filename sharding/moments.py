"""Statistics of a stored run: of each voxel over time, and of the run over the brain and time.

In: a `FrameStore` (T, V). Out: `RunMoments`. Sums are float64 and taken chunk by chunk in a fixed order, so the same
frames give the same bits. Mean, sd and background follow the published normalisation: over the brain's voxels and all
frames, negatives set to 0 first (unless the run is centred about 0, where that would destroy half of it).
"""

from dataclasses import dataclass

import numpy as np

from sharding.quantise import VoxelMoments
from sharding.store import FrameStore

CENTRED_FRACTION = 0.05
"Share of negative values in the brain above which a run counts as centred about 0 (demeaned or z-scored)."


@dataclass(frozen=True)
class RunMoments:
    """Statistics of a run of T frames and V voxels."""

    voxels: VoxelMoments
    mean: float
    "Over the brain and time, in the image's units."
    sd: float
    background: float
    "Smallest (x - mean) / sd in the brain."
    tsnr_median: float
    "Median over the brain of a voxel's mean over its sd."
    dvars_median: float
    "Median over frames of the root mean square change from the frame before, over the brain, in per cent of mean."
    negative_fraction: float
    "Of the values in the brain, before clipping."
    constant_fraction: float
    "Of the stored voxels."
    zero_frames: int
    "Frames that are 0 throughout."


class MomentSums:
    """First look at a run: does it have negatives? Then its moments."""

    def __init__(self, store: FrameStore, brain: np.ndarray) -> None:
        self._store, self._brain = store, brain
        negatives = sum(int(np.count_nonzero((chunk < 0) & brain)) for chunk in store.chunks() if chunk.min() < 0)
        self.negative_fraction = negatives / max(1, store.num_frames * int(brain.sum()))

    @property
    def centred(self) -> bool:
        """Whether the run is centred about 0."""
        return self.negative_fraction > CENTRED_FRACTION

    def take(self, clip_negatives: bool) -> RunMoments:
        """Moments of the run, with negatives set to 0 or left."""
        voxels, change, zero_frames = self._pass(clip_negatives)
        brain = self._brain
        mean = float(voxels.mean[brain].mean())
        sd = float(np.sqrt(np.mean(voxels.sd[brain] ** 2 + (voxels.mean[brain] - mean) ** 2)))
        tsnr = np.abs(voxels.mean[brain]) / np.maximum(voxels.sd[brain], 1e-12)
        moving = voxels.sd[brain] > 0
        return RunMoments(
            voxels=voxels,
            mean=mean,
            sd=sd,
            background=(float(voxels.low[brain].min()) - mean) / sd if sd > 0 else 0.0,
            tsnr_median=float(np.median(tsnr[moving])) if moving.any() else 0.0,
            dvars_median=100 * float(np.median(change)) / abs(mean) if mean and len(change) else 0.0,
            negative_fraction=self.negative_fraction,
            constant_fraction=float(np.mean(voxels.high == voxels.low)),
            zero_frames=zero_frames,
        )

    def _pass(self, clip: bool) -> tuple[VoxelMoments, list[float], int]:
        num_frames, num_voxels = self._store.num_frames, self._store.num_voxels
        first = self._store.read(0, 1)[0]
        first = np.maximum(first, 0) if clip else first
        total, square = np.zeros(num_voxels), np.zeros(num_voxels)
        low, high = first.copy(), first.copy()
        last, change, zero_frames = first, [], 0
        for chunk in self._store.chunks():
            chunk = np.maximum(chunk, 0, out=chunk) if clip else chunk
            np.minimum(low, chunk.min(axis=0), out=low)
            np.maximum(high, chunk.max(axis=0), out=high)
            zero_frames += int(np.count_nonzero(~chunk.any(axis=1)))
            steps = np.diff(np.concatenate([last[None], chunk]), axis=0)[:, self._brain]
            change += np.sqrt(np.mean(steps * steps, axis=1)).tolist()
            last = chunk[-1].copy()
            away = np.subtract(chunk, first, out=chunk)  # sums of differences from the first frame do not cancel
            total += away.sum(axis=0)
            square += np.square(away, out=away).sum(axis=0)
        away_mean = total / num_frames
        variance = np.maximum(square / num_frames - away_mean**2, 0)
        mean = first.astype(np.float64) + away_mean
        sd = np.where(high == low, 0.0, np.sqrt(variance))
        return VoxelMoments(mean, sd, low.astype(np.float64), high.astype(np.float64)), change[1:], zero_frames
