"""What decides the codes of a run, beside its file: recorded in every corpus and release, and read back from there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sharding.errors import InputError

CHOICES = {
    "negatives": ("auto", "clip", "keep"),
    "geometry": ("affine", "neurostorm_legacy"),
    "interpolation": ("linear", "continuous"),
    "time_interpolation": ("sinc", "linear"),
}

BEFORE = {"geometry": "affine", "interpolation": "linear", "time_interpolation": "linear"}
"What was done before the setting existed, for corpora and releases that do not record it."


@dataclass(frozen=True)
class PreprocessingSettings:
    """Settings of `prepare_run`."""

    target_tr: float | None = 0.8
    "Spacing of stored frames in s; None keeps each run's own."
    min_frames: int = 20
    "Fewest frames, after resampling, that a run must have."
    negatives: str = "auto"
    "clip sets negative values to 0 (as published), keep leaves them, auto keeps them in runs centred about 0."
    range_sd: float = 12.0
    "Reach of a voxel's codes in its own sd; farther values are clipped and counted."
    geometry: str = "affine"
    """affine brings an image to the grid by its affine; neurostorm_legacy by its array indices, resized by the header's
    voxel sizes, centred, cropped and padded, as the published preprocessing does: images stored LAS are mirrored."""
    interpolation: str = "linear"
    "In space, of images off the lattice: linear (trilinear), or continuous (cubic splines)."
    time_interpolation: str = "sinc"
    "In time, between frames farther apart than target_tr: sinc (windowed), or linear, which weakens fast changes."
    confounds: str = ""
    "Regressed out: components of nilearn's load_confounds by commas, or one of its named strategies."
    high_pass_hz: float | None = None
    "Slower changes are filtered out (5th-order Butterworth, both ways)."
    low_pass_hz: float | None = None
    "Faster changes are filtered out, likewise."
    scrub_fd_mm: float | None = None
    "Frames of larger framewise displacement are filled in from their neighbours, and counted."

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {', '.join(allowed)}")
        if self.target_tr is not None and not 0.05 <= self.target_tr <= 20:
            raise InputError(f"target TR is {self.target_tr:g} s; expected 0.05 to 20, or native")
        if self.min_frames < 2:
            raise InputError(f"min frames is {self.min_frames}; expected 2 or more")
        for name in ("high_pass_hz", "low_pass_hz", "scrub_fd_mm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 100:
                raise InputError(f"{name} is {value:g}; expected more than 0")
        if self.high_pass_hz and self.low_pass_hz and self.high_pass_hz >= self.low_pass_hz:
            raise InputError(f"high pass {self.high_pass_hz:g} Hz is not below low pass {self.low_pass_hz:g} Hz")

    @property
    def cleans(self) -> bool:
        """Whether series are changed before they are resampled in time."""
        return bool(self.confounds or self.high_pass_hz or self.low_pass_hz or self.scrub_fd_mm)

    @property
    def needs_confounds(self) -> bool:
        """Whether every run must have a table of confounds."""
        return bool(self.confounds or self.scrub_fd_mm)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PreprocessingSettings":
        """Settings as a corpus or release records them; what it does not record is as it was when it was made."""
        return cls(**{**BEFORE, **values})
