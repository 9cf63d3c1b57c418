"""Room for the next checkpoint, looked at before a byte of it is written."""

import shutil
from pathlib import Path

from fmri_scale.checkpoint import layout
from fmri_scale.errors import CheckpointError

MARGIN = 1.05
"A checkpoint may be a little larger than the last: JSON, the average's files."


def require(run_dir: Path, expected_bytes: float, step: int) -> None:
    """Raise CheckpointError unless the run's disk has room for a checkpoint beside those that are there (rank 0).

    Parameters
    ----------
    expected_bytes : what the configuration leads one to expect; the size of the newest checkpoint counts if larger.
    """
    found = layout.committed(run_dir)
    last = sum(path.stat().st_size for path in found[0].path.rglob("*") if path.is_file()) if found else 0
    needed, free = MARGIN * max(expected_bytes, last), shutil.disk_usage(run_dir).free
    if free < needed:
        newest = f"the newest checkpoint is of step {found[0].step}" if found else "there is no checkpoint yet"
        raise CheckpointError(
            f"{run_dir}: a checkpoint of step {step} needs {needed / 1e9:.3f} GB and {free / 1e9:.3f} GB are free; "
            f"{newest}: make room or lower checkpoint.keep_last, then start the same command again"
        )
