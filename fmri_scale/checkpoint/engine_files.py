"""How DeepSpeed's engine reads and writes its files: never unpickling code, and never leaving a peer waiting.

`install(engine)` replaces the engine's checkpoint engine. Two things differ from DeepSpeed 0.19.8's own:
- reading refuses every class but the three DeepSpeed pickles itself (it loads with `weights_only=False`;
  `test_engine_refuses_a_pickle_that_runs_code`);
- a rank that cannot write (disk full) does not leave `save_checkpoint` before its last barrier, where the others
  would wait for ever; the fault is kept and raised afterwards (`test_full_disk_stops_all_ranks`). For the same reason
  rank 0 writes no converter scripts, which unpickle anyway: consolidated_state replaces them
  (`test_full_disk_is_told_by_all_ranks_and_leaves_nothing_half_written`).
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from fmri_scale.checkpoint import layout
from fmri_scale.checkpoint.collective import rank
from fmri_scale.checkpoint.reading import PICKLED_CLASSES, load_tensors
from fmri_scale.errors import CheckpointError

_FULL_BYTES = 1 << 16
"Bytes on a disk that count as none."
_CLASSES = dict(zip(PICKLED_CLASSES, (LossScaler, ZeroStageEnum, fragment_address), strict=True))


class EngineFiles(TorchCheckpointEngine):
    """Reads safely; records what this rank wrote and what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Path] = []
        self.fault = ""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write one file; keep the reason if that fails."""
        try:
            torch.save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            self.fault = self.fault or f"{path}: {_reason(error, Path(path).parent)}"
        else:
            self.written.append(Path(path))

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        """Read one file to the CPU; `map_location` is always that in what DeepSpeed asks."""
        return load_tensors(Path(path), _CLASSES, in_memory=True)


def _reason(error: Exception, folder: Path) -> str:
    """Return why a file could not be written; torch's writer only says that it stands at an unexpected position."""
    full = shutil.disk_usage(folder).free < _FULL_BYTES
    return os.strerror(errno.ENOSPC) if full else str(error).splitlines()[0]


def install(engine: Any) -> None:
    """Make a DeepSpeed engine use `EngineFiles`."""
    engine.checkpoint_engine = EngineFiles()
    engine._copy_recovery_script = lambda folder: None


def writer(engine: Any) -> Callable[[Path], list[Path]]:
    """Return what `commit.save` needs: a collective that writes the engine's files below a folder."""

    def write(folder: Path) -> list[Path]:
        install(engine)
        engine.save_checkpoint(str(folder), tag=layout.ENGINE, save_latest=False)
        if engine.checkpoint_engine.fault:
            raise CheckpointError(engine.checkpoint_engine.fault)
        # what lies on a local disk is copied by DeepSpeed itself
        offloaded = (folder / layout.ENGINE / "offloaded_tensors" / f"rank{rank():02d}").rglob("*")
        return engine.checkpoint_engine.written + [path for path in offloaded if path.is_file()]

    return write


def read(engine: Any, checkpoint: layout.CheckpointDir) -> None:
    """Load weights and optimizer state into an engine of the same ZeRO stage and number of ranks."""
    install(engine)
    path, _ = engine.load_checkpoint(str(checkpoint.path), tag=layout.ENGINE, load_lr_scheduler_states=False)
    if path is None:
        raise CheckpointError(f"{checkpoint.engine}: DeepSpeed found nothing to load")
