"""Read DeepSpeed's checkpoint files without running code from them.

`torch.load(weights_only=True)` refuses every class but tensors and plain containers. DeepSpeed 0.19 pickles
three more; a caller says what stands for them: DeepSpeed's own (to resume) or, by default, inert shells, so that
neither DeepSpeed nor its code is needed to get at the weights.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fmri_scale.errors import CheckpointError

PICKLED_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"The classes, beside tensors and containers, in the files of DeepSpeed 0.19."


class Inert:
    """Stands in for a pickled object whose behaviour is not wanted; keeps its attributes only."""

    def __init__(self, *args: Any) -> None:
        self.args = args


_SHELLS = {name: type(name.rpartition(".")[2], (Inert,), {}) for name in PICKLED_CLASSES}


def load_tensors(path: Path, classes: Mapping[str, type] = _SHELLS, in_memory: bool = False) -> dict[str, Any]:
    """Return the content of a `.pt` file that DeepSpeed wrote, on the CPU.

    Parameters
    ----------
    classes : what stands for each of `PICKLED_CLASSES`.
    in_memory : read everything at once; otherwise tensors are mapped from the file and must be copied to be kept.

    Raises
    ------
    CheckpointError : missing, damaged, or holding objects that no training checkpoint of ours holds.
    """
    allowed: list[Any] = [(cls, name) for name, cls in classes.items()]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=not in_memory)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as tensors: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not DeepSpeed's state")
    return content
