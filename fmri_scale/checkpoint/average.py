"""The moving average of the weights in a checkpoint: a file of each rank with its part of every parameter.

The parts of a parameter, laid end to end in the order of ranks, are the whole; files are safetensors, no pickle.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fmri_scale.checkpoint.fragments import WEIGHT, Saved
from fmri_scale.errors import CheckpointError

__all__ = ["WEIGHT", "is_kept", "read", "write"]


def write(folder: Path, rank: int, parts: dict[str, Tensor]) -> Path:
    """Write one rank's parts `[n]` by name of the parameter; return the file."""
    path = _file(folder, rank)
    save_file(parts, path)
    return path


def is_kept(folder: Path) -> bool:
    """Return whether a checkpoint's folder holds an average."""
    return _file(folder, 0).is_file()


def read(folder: Path, world_size: int) -> Saved:
    """Return the average in a checkpoint's folder; without shapes, which the weights' own files tell.

    Raises
    ------
    CheckpointError : a file is missing or damaged.
    """
    saved, begin = Saved({}), dict[str, int]()
    for rank in range(world_size):
        try:
            with safe_open(_file(folder, rank), "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    part = file.get_tensor(name)
                    saved.add(name, WEIGHT, begin.get(name, 0), part)
                    begin[name] = begin.get(name, 0) + part.numel()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{_file(folder, rank)}: cannot be read: {error}") from error
    return saved


def _file(folder: Path, rank: int) -> Path:
    return folder / f"average_{rank:05d}.safetensors"
