"""Options of preprocessing, as the build takes them. In: arguments. Out: `PreprocessingSettings`."""

import argparse

from sharding.errors import InputError
from sharding.preprocessing import CHOICES, PreprocessingSettings


def add_preprocessing_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is done to a run."""
    default = PreprocessingSettings()
    group = parser.add_argument_group("preprocessing")
    add = group.add_argument
    add("--target-tr", default="0.8", metavar="S", help="spacing of stored frames in s, or native (default: 0.8)")
    add("--min-frames", type=int, default=default.min_frames, metavar="N",
        help="fewest frames after resampling (default: %(default)s, a clip of the base model)")  # fmt: skip
    add("--negatives", default=default.negatives, choices=CHOICES["negatives"],
        help="negative values: clip to 0, keep, or auto: keep in runs centred about 0")  # fmt: skip
    add("--interpolation", default=default.interpolation, choices=CHOICES["interpolation"],
        help="in space, of images off the 2 mm lattice: trilinear, or cubic splines, which keep fine detail (error "
        "4 %% instead of 19 %% of fields 5 mm smooth) at 40 times the work (default: %(default)s)")  # fmt: skip
    add("--time-interpolation", default=default.time_interpolation, choices=CHOICES["time_interpolation"],
        help="between frames farther apart (default: windowed %(default)s; published: linear)")  # fmt: skip
    add("--geometry", default=default.geometry, choices=CHOICES["geometry"],
        help="neurostorm_legacy ignores the affine as the published preprocessing does: for parity alone")  # fmt: skip
    add("--confounds", default="", metavar="STRATEGY",
        help="regress out fMRIPrep confounds: simple, compcor, or components of nilearn's load_confounds by commas, "
        "such as motion,wm_csf,global_signal")  # fmt: skip
    add("--high-pass", type=float, metavar="HZ", help="filter out slower changes, at the run's own TR")
    add("--low-pass", type=float, metavar="HZ", help="filter out faster changes, likewise")
    add("--scrub", type=float, metavar="MM",
        help="fill in frames of larger framewise displacement (or standardised DVARS above 1.5), and stretches of "
        "fewer than 5 frames between them, from their neighbours")  # fmt: skip


def preprocessing_settings(args: argparse.Namespace) -> PreprocessingSettings:
    """Settings that arguments say.

    Raises
    ------
    InputError
        They make no sense.
    """
    return PreprocessingSettings(
        target_tr=_target_tr(args.target_tr),
        min_frames=args.min_frames,
        negatives=args.negatives,
        geometry=args.geometry,
        interpolation=args.interpolation,
        time_interpolation=args.time_interpolation,
        confounds=args.confounds,
        high_pass_hz=args.high_pass,
        low_pass_hz=args.low_pass,
        scrub_fd_mm=args.scrub,
    )


def _target_tr(text: str) -> float | None:
    if text == "native":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--target-tr is {text!r}; expected seconds, or native") from error
