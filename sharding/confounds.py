"""Tables of confounds, by nilearn: which columns are regressed out, which frames are scrubbed, how far the head moved.

In: a table as fMRIPrep writes it (its sidecar beside it), or a file of frame-to-frame displacements. Out: numbers per
frame of the image, at its own TR. Nothing is regressed here.
"""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sharding.errors import InputError
from sharding.preprocessing import PreprocessingSettings

STRATEGIES = {
    "simple": ("high_pass", "motion", "wm_csf"),
    "compcor": ("high_pass", "motion", "compcor"),
}
"Names for sets of components, as nilearn's load_confounds_strategy has them."

COMPONENTS = ("motion", "high_pass", "wm_csf", "global_signal", "compcor", "non_steady_state")
"Components of nilearn's load_confounds that leave the number of frames as it is."

_ENDINGS = ("_timeseries.tsv", "_regressors.tsv")


@dataclass(frozen=True)
class Confounds:
    """What is to be taken out of a run of T frames."""

    columns: np.ndarray
    "float64 (T, K), finite."
    keep: np.ndarray
    "bool (T,): frames that are not scrubbed."


def components(text: str) -> tuple[str, ...]:
    """Components that a strategy names.

    Raises
    ------
    InputError
        It names something unknown.
    """
    parts = STRATEGIES.get(text, tuple(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in parts if part not in COMPONENTS]
    if unknown:
        raise InputError(
            f"--confounds {text!r}: {unknown[0]} is unknown; expected {' or '.join(STRATEGIES)}, or any of "
            f"{', '.join(COMPONENTS)}, by commas"
        )
    return parts


def load(table: Path, settings: PreprocessingSettings, num_frames: int) -> Confounds:
    """Columns to regress out of a run, and its frames to scrub.

    Parameters
    ----------
    table
        fMRIPrep's confounds of the run.
    settings
        `confounds` and `scrub_fd_mm` of them.
    num_frames
        T of the image.

    Raises
    ------
    InputError
        The table cannot be read, lacks columns asked for, or has another number of rows.
    """
    strategy = components(settings.confounds)
    options: dict[str, Any] = {}
    if settings.scrub_fd_mm:
        strategy, options = (*strategy, "scrub"), {"fd_threshold": settings.scrub_fd_mm}
    try:
        frame, sample_mask = _load(table, strategy, options)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{table}: confounds cannot be taken from it ({_one_line(error)})") from error
    columns = np.empty((num_frames, 0)) if frame is None else frame.to_numpy(dtype=np.float64)
    if len(columns) != num_frames:
        raise InputError(f"{table}: {len(columns)} rows for an image of {num_frames} volumes; is it of this run?")
    keep = np.ones(num_frames, dtype=bool)
    if sample_mask is not None:
        keep[:] = False
        keep[sample_mask] = True
    return Confounds(np.nan_to_num(columns), keep)


def displacement(table: Path | None, motion: Path | None) -> tuple[float | None, str]:
    """Mean displacement of the head from frame to frame in mm, and what says so; None where nothing does.

    Parameters
    ----------
    table
        Confounds with a column framewise_displacement (Power's, from fMRIPrep), where there is one.
    motion
        Else: a number a line (relative root mean square, from FSL and HCP).
    """
    try:
        if table is not None:
            return _mean(np.genfromtxt(table, delimiter="\t", names=True)["framewise_displacement"]), "confounds"
        if motion is not None:
            return _mean(np.loadtxt(motion, ndmin=1)), "motion"
    except (OSError, ValueError, IndexError) as error:
        return None, f"unreadable ({_one_line(error)})"
    return None, ""


def _load(table: Path, strategy: tuple[str, ...], options: dict[str, Any]) -> tuple[Any, np.ndarray | None]:
    """Call nilearn, which looks for a table by the name of an image: give it such a pair of names."""
    from nilearn.interfaces.fmriprep import load_confounds  # here, because a build without confounds needs none of it

    ending = next((end for end in _ENDINGS if table.name.endswith(end)), _ENDINGS[0])
    sidecar = table.with_suffix(".json")
    with tempfile.TemporaryDirectory(prefix="confounds-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on frames at the start, which are filled with 0
        folder = Path(name)
        if not table.is_file():
            raise FileNotFoundError(f"no such file: {table.name}")
        (folder / f"sub-1_task-x_desc-confounds{ending}").symlink_to(table.resolve())
        if sidecar.is_file():
            (folder / f"sub-1_task-x_desc-confounds{ending}").with_suffix(".json").symlink_to(sidecar.resolve())
        image = folder / "sub-1_task-x_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        image.touch()
        return load_confounds(str(image), strategy=strategy, **options)


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
