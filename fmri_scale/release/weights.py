"""Weights on disk: safetensors under the model's own names, read into a model that has exactly those.

In and out: a state dict of floating-point tensors. A missing, extra or mis-shaped key is an error that names it;
nothing is ever filled with random values.
"""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fmri_scale.errors import CheckpointError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WEIGHTS = ("auto", "ema", "raw")
"What a release may hold: the moving average, the weights of the last step, or the first where a run kept it."
NAMED = 8
"Keys an error names of each kind before it only counts."


def save_weights(state: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    """Write weights in a dtype; CheckpointError for a value that is not finite (training went wrong)."""
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in sorted(state.items())}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"weights that are not finite: {_some(broken)}; export an earlier checkpoint")
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(path: Path, model: nn.Module) -> None:
    """Give a model (on any device, the meta device included) the weights of a file, as float32 on the CPU.

    Raises
    ------
    CheckpointError : the file is damaged, or its keys and shapes are not exactly those of the model.
    """
    check_shapes(read_shapes(path), {name: tuple(t.shape) for name, t in model.state_dict().items()}, str(path))
    try:
        state = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a file without reading the values."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise CheckpointError unless both have the same names and shapes; the message names the differences."""
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise CheckpointError(f"{where}: the weights are not those of its configuration: {listed}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
