"""The published model's numbers through the Triton kernels, interpreted: the public model, its codes, every gradient.

The interpreter takes milliseconds a token, so the blocks of all but the two coarsest grids run in torch here;
embedding, loss, redundancy scores and the other blocks are Triton's.
"""

import importlib
from pathlib import Path

import pytest
import torch

from fmri_scale.cli.parity import compare, read_case
from fmri_scale.models import block, mixer

GOLDEN = Path(__file__).parents[2] / "golden"
MOST_TOKENS = 64
"Tokens of a grid, padded, whose blocks are Triton's."


@pytest.fixture
def used(monkeypatch) -> set[str]:
    """Names of the operations whose Triton form runs."""
    found: set[str] = set()

    def watch(operation: str, name: str) -> None:
        module = importlib.import_module(f"fmri_scale.kernels.{operation}.triton")
        original = getattr(module, name)

        def watched(*args, **kwargs):
            found.add(f"{operation} {name}")
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    for operation in ("embed", "conv", "scan", "project", "select", "gate", "mlp"):
        watch(operation, "forward")
        watch(operation, "backward")
    watch("loss", "forward")
    watch("strd", "scores")
    return found


BLOCKS = {
    f"{operation} {direction}"
    for operation in ("conv", "scan", "project", "select", "gate", "mlp")
    for direction in ("forward", "backward")
}


@pytest.mark.parametrize(
    ("name", "codes", "kernels"),
    [
        ("mae_random_t6", True, BLOCKS | {"embed forward", "embed backward", "loss forward"}),
        ("encoder_prompt", False, BLOCKS),
        ("strd", False, {"strd scores"}),
    ],
)
def test_published_numbers_come_out_of_the_triton_kernels(name, codes, kernels, used, monkeypatch):
    original = mixer.Layout

    def layout(windows, *rest):
        made = original(windows, *rest)
        return made if windows.num_tokens <= MOST_TOKENS else made._replace(backend="torch")

    def norm_mlp(x, *rest):
        *rest, backend = rest
        return plain_mlp(x, *rest, backend if x.shape[1:5].numel() <= MOST_TOKENS else "torch")

    plain_mlp = block.norm_mlp
    monkeypatch.setattr(mixer, "Layout", layout)
    monkeypatch.setattr(block, "norm_mlp", norm_mlp)
    case, arguments = read_case(GOLDEN / f"{name}.safetensors")
    errors = compare(case, arguments, torch.float32, "triton", torch.device("cpu"), codes)
    assert max(errors.values()) < 1e-4, errors
    assert used == kernels
