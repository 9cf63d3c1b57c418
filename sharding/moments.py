"""Statistics of a stored run: of each voxel over time, and of the run over the brain and time.

In: a `FrameStore` (T, V). Out: `RunMoments`. Sums are float64 and taken chunk by chunk in a fixed order, so the same
frames give the same bits. Mean, sd and background follow the published normalisation: over the brain's voxels and all
frames, negatives set to 0 first (unless the run is centred about 0, where that would destroy half of it).
"""

from dataclasses import dataclass

import numpy as np

from sharding.quantise import VoxelMoments
from sharding.store import BLOCK_VOXELS, CHUNK_FRAMES, Frames, by_block, chunks

SAMPLED_VOXELS = 32768
"Voxels of the brain, evenly spread, by which change from frame to frame is judged."

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
    """Median over frames of the root mean square change from the frame before, over an even sample of the brain, in
    per cent of mean."""
    negative_fraction: float
    "Of the values in the brain, before clipping."
    constant_fraction: float
    "Of the stored voxels."
    zero_frames: int
    "Frames that are 0 throughout."
    lowest: float
    "Smallest stored value before clipping, or 0."


class MomentSums:
    """First look at a run: does it have negatives? Then its moments.

    Parameters
    ----------
    store
        Of T frames and V voxels.
    brain
        bool (V,): the voxels over which the run's own statistics are taken.
    """

    def __init__(self, store: Frames, brain: np.ndarray) -> None:
        self._store, self._brain = store, brain
        sampled = np.flatnonzero(brain)
        self._sampled = sampled[:: max(1, sampled.size // SAMPLED_VOXELS)]
        self._places = by_block(self._sampled, store.num_voxels)
        self._negatives, self.lowest = 0, 0.0
        # Most runs with negatives are clipped, so that look is the one that is taken on trust.
        self._clipped = self._pass(clip=True)
        self.negative_fraction = self._negatives / max(1, store.num_frames * int(brain.sum()))

    @property
    def centred(self) -> bool:
        """Whether the run is centred about 0."""
        return self.negative_fraction > CENTRED_FRACTION

    def take(self, clip_negatives: bool) -> RunMoments:
        """Moments of the run, with negatives set to 0 or left."""
        as_clipped = clip_negatives or self.lowest >= 0
        voxels, change, zero_frames = self._clipped if as_clipped else self._pass(clip=False)
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
            lowest=self.lowest,
        )

    def _pass(self, clip: bool) -> tuple[VoxelMoments, list[float], int]:
        num_frames, num_voxels = self._store.num_frames, self._store.num_voxels
        first = self._store.read(0, 1)[0]
        first = np.maximum(first, 0) if clip else first
        total, square = np.zeros(num_voxels), np.zeros(num_voxels)
        low, high = first.copy(), first.copy()
        last, change, zero_frames = first[self._sampled], [], 0
        aways = np.empty((CHUNK_FRAMES, BLOCK_VOXELS), dtype=np.float32)
        for start, stop in chunks(0, num_frames):
            seen = np.empty((1 + stop - start, self._sampled.size), dtype=np.float32)  # the frame before goes first
            seen[0] = last
            some = np.zeros(stop - start, dtype=bool)  # frames that are not 0 throughout
            for v, block in self._store.blocks(start, stop):
                smallest = block.min(axis=0)
                if clip and smallest.min() < 0:
                    self._count(block, smallest, v)
                    block = np.maximum(block, 0)
                    np.maximum(smallest, 0, out=smallest)
                np.minimum(low[v], smallest, out=low[v])
                np.maximum(high[v], block.max(axis=0), out=high[v])
                # sums of differences from the first frame do not cancel
                away = np.subtract(block, first[v], out=aways[: len(block), : smallest.size])
                total[v] += away.sum(axis=0)
                square[v] += np.square(away, out=away).sum(axis=0)
                own, places = self._places[v.start]
                seen[1:, own] = block.take(places, axis=1, mode="clip")
                if not some.all():
                    some |= block.any(axis=1)
            zero_frames += int(np.count_nonzero(~some))
            steps = np.diff(seen, axis=0)
            change += np.sqrt(np.mean(steps * steps, axis=1)).tolist()
            last = seen[-1]
        away_mean = total / num_frames
        variance = np.maximum(square / num_frames - away_mean**2, 0)
        mean = first.astype(np.float64) + away_mean
        sd = np.where(high == low, 0.0, np.sqrt(variance))
        return VoxelMoments(mean, sd, low.astype(np.float64), high.astype(np.float64)), change[1:], zero_frames

    def _count(self, block: np.ndarray, smallest: np.ndarray, voxels: slice) -> None:
        """Count the negatives of the brain in a block of frames and voxels that has some."""
        self._negatives += int(np.count_nonzero((block < 0) & self._brain[voxels]))
        self.lowest = min(self.lowest, float(smallest.min()))
