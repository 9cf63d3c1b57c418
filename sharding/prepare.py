"""One run, from its file to int8 codes on the canonical grid: what a corpus stores, and what a model later sees.

In: a 4D NIfTI image in MNI152 space. Out: a `PreparedRun`. The file is read once, in chunks of frames: brought to the
stored voxels, cleaned where asked for, resampled in time, put into a `FrameStore`; then moments over the store, then
codes segment by segment. Memory does not grow with the length of the run. Nothing is normalised: that is chosen when
a corpus is read.
"""

from pathlib import Path

import numpy as np

from sharding.clean import Cleaner
from sharding.confounds import load as load_confounds
from sharding.errors import InputError
from sharding.fidelity import RoundTrip
from sharding.grid import Frame, Sampler, grid_sampler, image_frame
from sharding.legacy import legacy_frame
from sharding.mask import brain_mask
from sharding.moments import MomentSums, RunMoments
from sharding.prepared import PreparedRun
from sharding.preprocessing import PreprocessingSettings
from sharding.quantise import VoxelMoments, power_of_two_unit, voxel_scale
from sharding.read import ImageInfo, open_image, read_frames, read_volume
from sharding.regress import clean_store
from sharding.space import Overlap, check_overlap, claimed_space, overlap
from sharding.spline import spline_sampler
from sharding.store import Frames, FrameStore
from sharding.timing import TimeResampler, Upsampled, repetition_time, resampled_frames

MAX_NONFINITE_VOXELS = 0.5
"Share of the brain's voxels that may be NaN or Inf throughout (some tools write NaN outside the brain)."


CLEANING_SHARE = 0.25
"Of a store's memory, in each of the two that cleaning needs: the libraries that clean take 120 MiB themselves."

MOST_FLATTENED = 0.5
"Share of the brain's changing voxels that may come out as constant: beyond, one value has set the unit of all."

MIN_BRAIN_VOXELS = 1000
"Fewest 2 mm voxels of brain that an image must reach: below, nothing in it is a brain."


def prepare_run(
    image_path: str | Path,
    settings: PreprocessingSettings | None = None,
    *,
    tr: float | None = None,
    mask_path: str | Path | None = None,
    confounds_path: str | Path | None = None,
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
    confounds_path
        The run's table of fMRIPrep confounds; needed only where settings ask for confounds or scrubbing.
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
    info, _ = check_run(
        image_path, settings, tr=tr, mask_path=mask_path, confounds_path=confounds_path, assume_mni=assume_mni
    )
    source_tr, tr_from = repetition_time(info, tr)
    out_tr = settings.target_tr or source_tr
    wanted = np.flatnonzero(brain_mask() if mask is None else mask)
    frame = _frame(info.shape, info.affine, str(info.path), settings)
    sampler = spline_sampler(frame, wanted) if settings.interpolation == "continuous" else grid_sampler(frame, wanted)
    brain, dice = _statistics_voxels(info, sampler, mask_path, wanted, settings)

    cleaner = Cleaner(info.num_voxels, sampler)
    found: Overlap | None = None
    resampler = TimeResampler(info.num_frames, source_tr, out_tr, settings.time_interpolation)
    share = CLEANING_SHARE if settings.cleans else 1.0
    direct = resampler.grows or resampler.keeps
    sampled = FrameStore(info.num_frames, wanted.size, scratch, share) if settings.cleans or direct else None
    resampled = None if direct else FrameStore(resampler.num_out, wanted.size, scratch, share)
    for chunk in read_frames(info):
        chunk = cleaner(chunk)
        if found is None and cleaner.missing(brain) <= MAX_NONFINITE_VOXELS:
            found = overlap(info, frame, sampler, wanted, chunk)
            check_overlap(info, found, assume_mni)
        if sampled is not None:
            sampled.append(sampler(chunk, sampled.room(len(chunk))))
        elif resampled is not None:
            resampled.append(resampler.push(sampler(chunk)))
    if found is None:
        raise InputError(f"{info.path}: {cleaner.missing(brain):.0%} of the brain's voxels are NaN or Inf throughout")
    scrubbed = 0
    if sampled is not None and settings.cleans:
        scrubbed = _clean(sampled, info, settings, source_tr, confounds_path)
    store = _at_target_tr(sampled, resampled, resampler)
    moments, clip = _moments(info, store, brain, settings)
    unit = power_of_two_unit(moments.sd, moments.voxels.largest)
    scale, stats = voxel_scale(moments.voxels, unit, settings.range_sd)
    _check_scale(info, moments.voxels, brain, scale, stats)
    return PreparedRun(
        info=info,
        tr=out_tr,
        source_tr=source_tr,
        tr_from=tr_from,
        space=claimed_space(info, assume_mni),
        overlap=found,
        geometry="legacy" if settings.geometry != "affine" else "exact" if sampler.exact else "resampled",
        outside_fov=sampler.outside,
        scale=scale,
        stats=stats,
        unit=unit,
        moments=moments,
        clip_negatives=clip,
        nonfinite=cleaner.replaced,
        scrubbed=scrubbed,
        mask_dice=dice,
        store=store,
        round_trip=RoundTrip(brain, scale, unit),
    )


def check_run(
    image_path: str | Path,
    settings: PreprocessingSettings,
    *,
    tr: float | None = None,
    mask_path: str | Path | None = None,
    confounds_path: str | Path | None = None,
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
    if settings.needs_confounds and (confounds_path is None or not Path(confounds_path).is_file()):
        said = "has no table of confounds beside it" if confounds_path is None else f"{confounds_path}: no such file"
        raise InputError(f"{info.path}: {said}; give a table with a column confounds, or build without confounds")
    out_tr = settings.target_tr or source_tr
    frames = resampled_frames(info.num_frames, source_tr, out_tr)
    if frames < settings.min_frames:
        raise InputError(
            f"{info.path}: too short: {info.num_frames} volumes of {source_tr:g} s make {frames} frames of "
            f"{out_tr:g} s; --min-frames is {settings.min_frames}"
        )
    return info, frames


def _frame(shape: tuple[int, int, int], affine: np.ndarray, name: str, settings: PreprocessingSettings) -> Frame:
    """The space of an image, by its affine (which is checked in any case) or as the published preprocessing took it."""
    frame = image_frame(shape, affine, name)
    if settings.geometry == "affine":
        return frame
    return legacy_frame(shape, tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)))


def _clean(
    store: FrameStore,
    info: ImageInfo,
    settings: PreprocessingSettings,
    tr: float,
    confounds_path: str | Path | None,
) -> int:
    """Clean a run's series in place; return the frames filled in."""
    found = None
    if settings.needs_confounds and confounds_path is not None:
        found = load_confounds(Path(confounds_path), settings, info.num_frames)
    return clean_store(store, found, settings, tr, str(info.path))


def _at_target_tr(sampled: FrameStore | None, resampled: FrameStore | None, resampler: TimeResampler) -> Frames:
    """The run at its target TR: as it was filled, or from frames at the source's TR."""
    if sampled is not None and resampled is not None:
        for number in range(sampled.num_frames):  # copies, because some are kept
            resampled.append(resampler.push(sampled.read(number, number + 1)))
        sampled.close()
    if resampled is not None:
        return resampled
    assert sampled is not None
    return sampled if resampler.keeps else Upsampled(sampled, resampler)


def _statistics_voxels(
    info: ImageInfo,
    sampler: Sampler,
    mask_path: str | Path | None,
    wanted: np.ndarray,
    settings: PreprocessingSettings,
) -> tuple[np.ndarray, float | None]:
    """Stored voxels over which a run's statistics are taken: bool (V,), and how its own mask overlaps the MNI brain."""
    brain = mni = brain_mask(dilated=False).ravel()[wanted]
    dice = None
    if mask_path is not None:
        volume = read_volume(mask_path)
        frame = _frame(volume.shape, volume.affine, str(mask_path), settings)
        brain = grid_sampler(frame, wanted).nearest(np.nan_to_num(volume.values) != 0)  # NaN is outside
        dice = 2 * float((brain & mni).sum()) / max(1, int(brain.sum()) + int(mni.sum()))
    brain = brain & (sampler.take >= 0)
    if brain.sum() < MIN_BRAIN_VOXELS:
        where = "the MNI brain" if mask_path is None else f"its mask {mask_path}"
        raise InputError(
            f"{info.path}: reaches {int(brain.sum()):,} voxels of {where}, {MIN_BRAIN_VOXELS:,} or more expected; "
            "is it in MNI152 space?"
        )
    return brain, dice


def _check_scale(
    info: ImageInfo, voxels: VoxelMoments, brain: np.ndarray, scale: np.ndarray, stats: np.ndarray
) -> None:
    """Refuse a run whose voxels do not fit one unit: a value out of all proportion would flatten all others."""
    changing = brain & (voxels.high > voxels.low)
    lost = float(np.mean(scale[1, changing] == 0)) if changing.any() else 0.0
    if not (np.isfinite(scale).all() and np.isfinite(stats).all()) or lost > MOST_FLATTENED:
        raise _out_of_proportion(info, voxels)


def _out_of_proportion(info: ImageInfo, voxels: VoxelMoments) -> InputError:
    return InputError(
        f"{info.path}: values up to {voxels.largest:.3g} leave nothing of the others; is one damaged? "
        "Clip or zero it, or scale the image, and write it anew"
    )


def _moments(
    info: ImageInfo, store: Frames, brain: np.ndarray, settings: PreprocessingSettings
) -> tuple[RunMoments, bool]:
    """Moments of the stored series, and whether negatives are clipped."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused
        sums = MomentSums(store, brain)
        clip = settings.negatives == "clip" or (settings.negatives == "auto" and not sums.centred)
        moments = sums.take(clip)
    if not np.isfinite(moments.sd):
        raise _out_of_proportion(info, moments.voxels)
    if moments.sd == 0:
        raise InputError(f"{info.path}: every voxel of the brain has the same value ({moments.mean:g}); no signal")
    return moments, clip
