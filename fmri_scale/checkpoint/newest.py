"""Find the checkpoint to continue from: the newest one that is whole, proved by its manifest.

The file `latest` is for people and is not trusted here. A newer checkpoint that fails its proof is passed over
with a warning that names the fault.
"""

from pathlib import Path

from fmri_scale.checkpoint import layout, manifest
from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.errors import CheckpointError
from fmri_scale.log import get_logger

log = get_logger(__name__)


def newest(run_dir: str | Path) -> CheckpointDir:
    """Return the newest whole checkpoint of a run folder, every file of it verified.

    Raises
    ------
    CheckpointError : the folder holds no checkpoint, or none that is whole.
    """
    run_dir = Path(run_dir)
    found = layout.committed(run_dir)
    if not found:
        raise CheckpointError(f"{layout.folder(run_dir)}: holds no checkpoint; train a run into {run_dir} first")
    faults = []
    for candidate in found:
        try:
            manifest.verify(candidate.path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            log.warning("passed over a broken checkpoint: %s", fault)
        if faults:
            log.warning("falling back to %s", candidate.path)
        return candidate
    raise CheckpointError(f"{layout.folder(run_dir)}: no checkpoint is whole: {'; '.join(faults)}")


def locate(path: str | Path) -> CheckpointDir:
    """Return the checkpoint that `path` names: a checkpoint's folder (verified), or a run's (its newest whole one).

    Raises
    ------
    CheckpointError : neither, or damaged.
    """
    path = Path(path)
    named = layout.as_checkpoint(path.resolve())
    if named is not None and path.is_dir():
        manifest.verify(named.path)
        return named
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run or checkpoint folder")
    return newest(path)
