"""The clock of the job: a scheduler ends it at a known time, and a run that stops before loses nothing.

The end is read from FMRI_SCALE_END_TIME (any scheduler; seconds since 1970) or Slurm's SLURM_JOB_END_TIME, and where
Slurm does not set that, asked of `squeue`.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping

from fmri_scale.errors import LaunchError
from fmri_scale.log import get_logger

log = get_logger(__name__)

OWN, SLURM = "FMRI_SCALE_END_TIME", "SLURM_JOB_END_TIME"


def end_time(env: Mapping[str, str] = os.environ) -> float | None:
    """Return when the job ends, in seconds since 1970; None where nobody says.

    Raises
    ------
    LaunchError : a variable that is no time.
    """
    for name in (OWN, SLURM):
        text = env.get(name, "")
        if text:
            try:
                return float(text)
            except ValueError as error:
                raise LaunchError(f"environment variable {name}={text!r}: expected seconds since 1970") from error
    job = env.get("SLURM_JOB_ID", "")
    return _ask_slurm(job) if job and shutil.which("squeue") else None


def _ask_slurm(job: str) -> float | None:
    ask = ["squeue", "--noheader", "--job", job, "--format", "%e"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        return time.mktime(time.strptime(said, "%Y-%m-%dT%H:%M:%S"))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("Slurm does not say when job %s ends (%s); set %s to stop in time", job, error, OWN)
        return None


class JobEnd:
    """Says when it is time to save and stop.

    Parameters
    ----------
    margin_s : seconds before the end that are left for what comes after the checkpoint.
    """

    def __init__(self, end: float | None, margin_s: float) -> None:
        self._end, self._margin_s, self._longest_save_s = end, margin_s, 0.0

    def note_save(self, seconds: float) -> None:
        """Remember how long a checkpoint takes."""
        self._longest_save_s = max(self._longest_save_s, seconds)

    def is_near(self, step_s: float, now: float | None = None) -> bool:
        """Return whether another step of `step_s` seconds and a checkpoint might not fit before the margin."""
        if self._end is None:
            return False
        left = self._end - (time.time() if now is None else now) - self._margin_s
        return left < 2.0 * (step_s + self._longest_save_s)
