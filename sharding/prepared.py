"""A run on the stored voxels, as `prepare_run` makes it: codes by segments, scales, statistics, quality.

In: everything that was found about a run, and its frames in a `FrameStore`. Out: codes as often as asked for.
"""

import functools
from dataclasses import dataclass, field

import numpy as np

from sharding.fidelity import RoundTrip
from sharding.grid import axis_codes
from sharding.moments import RunMoments
from sharding.quantise import Encoder
from sharding.read import ImageInfo
from sharding.space import Overlap
from sharding.store import Frames, chunks


@dataclass
class PreparedRun:
    """A run on the stored voxels. T frames, V voxels."""

    info: ImageInfo
    tr: float
    "Spacing of the frames in s."
    source_tr: float
    tr_from: str
    space: str
    "What says that it is in MNI152 space: file name, header, overlap or assumed."
    overlap: Overlap
    geometry: str
    "exact (cropped and padded), resampled, or legacy (by array indices)."
    outside_fov: float
    "Fraction of stored voxels that the image does not reach."
    scale: np.ndarray
    "float16 (2, V): offset and step in units."
    stats: np.ndarray
    "float16 (2, V): see format.STATS_SUFFIX."
    unit: float
    moments: RunMoments
    clip_negatives: bool
    nonfinite: int
    "NaN and Inf values met in voxels that are used; each was replaced by its voxel's last finite value, or 0."
    scrubbed: int
    "Frames of the image that were filled in from their neighbours."
    mask_dice: float | None
    "Overlap of the run's own brain mask with the MNI brain (Dice, on the stored voxels); None where it has none."
    store: Frames
    round_trip: RoundTrip
    "How well codes keep the series, of the segments encoded so far."
    clipped: int = field(default=0)
    "Values beyond the codes' reach, of the segments encoded so far."

    @property
    def num_frames(self) -> int:
        """T."""
        return self.store.num_frames

    @property
    def mean(self) -> float:
        """Mean over the brain's voxels and all frames."""
        return self.moments.mean

    @property
    def sd(self) -> float:
        """Standard deviation over the brain's voxels and all frames."""
        return self.moments.sd

    @property
    def background(self) -> float:
        """Smallest value in the brain as (x - mean) / sd: what lies outside the brain in run_z."""
        return self.moments.background

    @property
    def orientation(self) -> str:
        """Orientation of the source, for example LAS."""
        return axis_codes(self.info.affine)

    def frames(self, start: int, stop: int) -> np.ndarray:
        """Signal before quantisation, float32 (stop - start, V)."""
        frames = self.store.read(start, stop)
        return np.maximum(frames, 0, out=frames) if self._clips else frames

    @property
    def _clips(self) -> bool:
        return self.clip_negatives and self.moments.lowest < 0

    @functools.cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.scale, self.unit)

    def segment(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Codes of frames start to stop, int8 (stop - start, V) (into `out`, where given)."""
        codes = np.empty((stop - start, self.store.num_voxels), dtype=np.int8) if out is None else out
        for first, last in chunks(start, stop):
            for voxels, block in self.store.blocks(first, last):
                frames = np.maximum(block, 0) if self._clips else block
                some = codes[first - start : last - start, voxels]
                self.clipped += self._encoder(frames, voxels, some)
                self.round_trip.add(frames, some, voxels.start)
        return codes

    @property
    def codes(self) -> np.ndarray:
        """Codes of the whole run, int8 (T, V)."""
        return self.segment(0, self.num_frames)

    def close(self) -> None:
        """Let go of the frames."""
        self.store.close()
