"""First weights of a model, as a function of the seed and each parameter's name.

A parameter's values depend neither on the device, the number of ranks nor on which other parameters exist. The
distributions are those of the published model: PyTorch's default for linear maps and convolutions, Mamba's for the
scan (Gu and Dao 2023, section 3.6), a truncated normal of 0.02 for positions and prompts, zeros for mask tokens.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from fmri_scale.models.mixer import Mixer

DT_RANGE = (1e-3, 1e-1)
"Step sizes that the scan starts with."
EMBEDDING_STD = 0.02
"Standard deviation of positions and prompts; cut at 2 (absolute)."


def init_weights(model: nn.Module, seed: int) -> None:
    """Set every parameter in place; parameters on the meta device are left alone."""
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.is_meta:
                    full_name = f"{path}.{name}" if path else name
                    parameter.copy_(first_values(module, full_name, tuple(parameter.shape), generator(seed, full_name)))


def generator(seed: int, name: str) -> torch.Generator:
    """Return the CPU generator of a parameter."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def first_values(module: nn.Module, full_name: str, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Return the first values of a parameter of a module, by its name in the model."""
    path, _, name = full_name.rpartition(".")
    if isinstance(module, nn.LayerNorm):
        return torch.full(shape, 1.0 if name == "weight" else 0.0)
    if isinstance(module, nn.Linear):
        if path.endswith("dt_proj") and name == "bias":
            return _dt_bias(shape, rng)
        return _uniform(shape, module.in_features**-0.5, rng)
    if name.startswith("A_log"):
        return torch.arange(1, shape[1] + 1).double().log().expand(shape)
    if name in ("D", "D_reverse"):
        return torch.ones(shape)
    if isinstance(module, Mixer) and name.startswith("conv"):
        return _uniform(shape, module.conv_weight.shape[1] ** -0.5, rng)
    if name in ("space", "time", "prompt"):
        return _normal(shape, EMBEDDING_STD, rng)
    assert path.endswith("mask_tokens"), f"{full_name}: no rule for its first values"
    return torch.zeros(shape)


def _uniform(shape: tuple[int, ...], bound: float, rng: torch.Generator) -> Tensor:
    return (2.0 * torch.rand(shape, generator=rng) - 1.0) * bound


def _normal(shape: tuple[int, ...], std: float, rng: torch.Generator) -> Tensor:
    """Draw by the inverse of the distribution: the same on every processor, unlike a rejection sampler."""
    centred = 2.0 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1.0
    return (torch.erfinv(centred) * (std * math.sqrt(2.0))).clamp(-2.0, 2.0)


def _dt_bias(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Return biases whose softplus is log-uniform over `DT_RANGE`."""
    low, high = (math.log(v) for v in DT_RANGE)
    dt = torch.exp(low + (high - low) * torch.rand(shape, generator=rng, dtype=torch.float64))
    return dt + torch.log(-torch.expm1(-dt))
