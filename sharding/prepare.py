"""One run, from its file to int8 codes on the canonical grid: what a corpus stores, and what a model later sees.

In: a 4D NIfTI image in MNI152 space. Out: a `PreparedRun`. The file is read once, in chunks of frames: brought to the
stored voxels, resampled in time, put into a `FrameStore`; then moments over the store, then codes segment by segment.
Memory does not grow with the length of the run. Nothing is normalised: that is chosen when a corpus is read.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sharding.clean import Cleaner
from sharding.errors import InputError
from sharding.grid import Sampler, axis_codes, grid_sampler, image_frame
from sharding.mask import brain_mask
from sharding.moments import MomentSums, RunMoments
from sharding.quantise import encode, power_of_two_unit, voxel_scale
from sharding.read import ImageInfo, open_image, read_frames, read_volume
from sharding.space import Overlap, check_overlap, claimed_space, overlap
from sharding.store import FrameStore
from sharding.timing import TimeResampler, repetition_time, resampled_frames

MAX_NONFINITE_VOXELS = 0.5
"Share of the brain's voxels that may be NaN or Inf throughout (some tools write NaN outside the brain)."


MIN_BRAIN_VOXELS = 1000
"Fewest 2 mm voxels of brain that an image must reach: below, nothing in it is a brain."

ENCODE_FRAMES = 16
"Frames encoded at a time: the arithmetic needs several float32 copies of them."


@dataclass(frozen=True)
class PreprocessingSettings:
    """What decides the codes of a run, beside its file; recorded in every corpus and release."""

    target_tr: float | None = 0.8
    "Spacing of stored frames in s; None keeps each run's own."
    min_frames: int = 20
    "Fewest frames, after resampling, that a run must have."
    negatives: str = "auto"
    "clip sets negative values to 0 (as published), keep leaves them, auto keeps them in runs centred about 0."
    range_sd: float = 12.0
    "Reach of a voxel's codes in its own sd; farther values are clipped and counted."

    def __post_init__(self) -> None:
        if self.negatives not in ("auto", "clip", "keep"):
            raise InputError(f"negatives is {self.negatives!r}; expected auto, clip or keep")
        if self.target_tr is not None and not 0.05 <= self.target_tr <= 20:
            raise InputError(f"target TR is {self.target_tr:g} s; expected 0.05 to 20, or native")
        if self.min_frames < 2:
            raise InputError(f"min frames is {self.min_frames}; expected 2 or more")

    def to_json(self) -> dict[str, Any]:
        """As plain values; `PreprocessingSettings(**values)` reads them back."""
        return asdict(self)


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
    exact: bool
    "Cropped and padded, not interpolated in space."
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
    store: FrameStore
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
        return np.maximum(frames, 0, out=frames) if self.clip_negatives else frames

    def segment(self, start: int, stop: int) -> np.ndarray:
        """Codes of frames start to stop, int8 (stop - start, V)."""
        codes = np.empty((stop - start, self.store.num_voxels), dtype=np.int8)
        for first in range(start, stop, ENCODE_FRAMES):
            last = min(first + ENCODE_FRAMES, stop)
            codes[first - start : last - start], clipped = encode(self.frames(first, last), self.scale, self.unit)
            self.clipped += clipped
        return codes

    @property
    def codes(self) -> np.ndarray:
        """Codes of the whole run, int8 (T, V)."""
        return self.segment(0, self.num_frames)

    def close(self) -> None:
        """Let go of the frames."""
        self.store.close()


def prepare_run(
    image_path: str | Path,
    settings: PreprocessingSettings | None = None,
    *,
    tr: float | None = None,
    mask_path: str | Path | None = None,
    assume_mni: bool = False,
    mask: np.ndarray | None = None,
    scratch: Path | None = None,
) -> PreparedRun:
    """Bring one run to the canonical grid, the target TR and int8.

    Parameters
    ----------
    image_path
        4D NIfTI.
    settings
        Defaults where None.
    tr
        Repetition time in s, where the file is wrong or silent.
    mask_path
        The run's own brain mask (3D NIfTI, any grid), over which mean, sd and background are taken; the MNI brain
        where None.
    assume_mni
        Take the image as it lies, whatever space it says.
    mask
        bool (96, 96, 96): voxels to store; the dilated MNI brain where None. A release gives its own.
    scratch
        Folder for frames that do not fit in memory.

    Raises
    ------
    InputError
        The file cannot be used; the message says why and what to do.
    """
    settings = settings or PreprocessingSettings()
    info, _ = check_run(image_path, settings, tr=tr, mask_path=mask_path, assume_mni=assume_mni)
    source_tr, tr_from = repetition_time(info, tr)
    out_tr = settings.target_tr or source_tr
    wanted = np.flatnonzero(brain_mask() if mask is None else mask)
    frame = image_frame(info.shape, info.affine, str(info.path))
    sampler = grid_sampler(frame, wanted)
    brain = _statistics_voxels(info, sampler, mask_path, wanted)

    resampler = TimeResampler(info.num_frames, source_tr, out_tr)
    store = FrameStore(resampler.num_out, wanted.size, scratch)
    cleaner = Cleaner(info.num_voxels, sampler)
    found: Overlap | None = None
    for chunk in read_frames(info):
        chunk = cleaner(chunk)
        if found is None and cleaner.missing(brain) <= MAX_NONFINITE_VOXELS:
            found = overlap(info, frame, sampler, wanted, chunk)
            check_overlap(info, found, assume_mni)
        store.append(resampler.push(sampler(chunk)))
    if found is None:
        raise InputError(f"{info.path}: {cleaner.missing(brain):.0%} of the brain's voxels are NaN or Inf throughout")
    moments, clip = _moments(info, store, brain, settings)
    unit = power_of_two_unit(moments.sd, moments.voxels.largest)
    scale, stats = voxel_scale(moments.voxels, unit, settings.range_sd)
    return PreparedRun(
        info=info,
        tr=out_tr,
        source_tr=source_tr,
        tr_from=tr_from,
        space=claimed_space(info, assume_mni),
        overlap=found,
        exact=sampler.exact,
        outside_fov=sampler.outside,
        scale=scale,
        stats=stats,
        unit=unit,
        moments=moments,
        clip_negatives=clip,
        nonfinite=cleaner.replaced,
        store=store,
    )


def check_run(
    image_path: str | Path,
    settings: PreprocessingSettings,
    *,
    tr: float | None = None,
    mask_path: str | Path | None = None,
    assume_mni: bool = False,
) -> tuple[ImageInfo, int]:
    """Everything that can be refused from the header alone; parameters and errors as of `prepare_run`.

    Returns
    -------
    The opened image, and the frames it will make.
    """
    info = open_image(image_path)
    source_tr, _ = repetition_time(info, tr)
    claimed_space(info, assume_mni)
    image_frame(info.shape, info.affine, str(info.path))
    if mask_path is not None and not Path(mask_path).is_file():
        raise InputError(f"{mask_path}: no such file (brain mask of {info.path})")
    out_tr = settings.target_tr or source_tr
    frames = resampled_frames(info.num_frames, source_tr, out_tr)
    if frames < settings.min_frames:
        raise InputError(
            f"{info.path}: too short: {info.num_frames} volumes of {source_tr:g} s make {frames} frames of "
            f"{out_tr:g} s; --min-frames is {settings.min_frames}"
        )
    return info, frames


def _statistics_voxels(
    info: ImageInfo, sampler: Sampler, mask_path: str | Path | None, wanted: np.ndarray
) -> np.ndarray:
    """Stored voxels over which a run's statistics are taken, brain that the image reaches: bool (V,)."""
    if mask_path is None:
        brain = brain_mask(dilated=False).ravel()[wanted]
    else:
        volume = read_volume(mask_path)
        brain = grid_sampler(image_frame(volume.shape, volume.affine, str(mask_path)), wanted).nearest(
            volume.values != 0
        )
    brain &= sampler.take >= 0
    if brain.sum() < MIN_BRAIN_VOXELS:
        where = "the MNI brain" if mask_path is None else f"its mask {mask_path}"
        raise InputError(
            f"{info.path}: reaches {int(brain.sum()):,} voxels of {where}, {MIN_BRAIN_VOXELS:,} or more expected; "
            "is it in MNI152 space?"
        )
    return brain


def _moments(
    info: ImageInfo, store: FrameStore, brain: np.ndarray, settings: PreprocessingSettings
) -> tuple[RunMoments, bool]:
    """Moments of the stored series, and whether negatives are clipped."""
    sums = MomentSums(store, brain)
    clip = settings.negatives == "clip" or (settings.negatives == "auto" and not sums.centred)
    moments = sums.take(clip)
    if not moments.sd > 0:
        raise InputError(f"{info.path}: every voxel of the brain has the same value ({moments.mean:g}); no signal")
    return moments, clip
