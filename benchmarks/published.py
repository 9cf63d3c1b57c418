"""The published NeuroSTORM and SwiFT from clones, to be timed beside ours: what they import, and a scan for CPUs.

NeuroSTORM's masked autoencoder needs monai and einops, and mamba_ssm for its blocks. mamba_ssm's scan runs on CUDA
devices alone and only if it was built. Two others run anywhere, slowly: `scan=FOLDER`, a clone of mamba, takes its own
block with its own reference scan (`selective_scan_ref`), which is what a user without CUDA could do; with
`scan="reference"` a module of its name stands in, whose block has the same parameters and computes the same by this
project's plain definition, to know that the rest works. SwiFT's encoder needs monai and einops alone. Nothing of the
clones is changed.
"""

import importlib
import importlib.util
import math
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fmri_scale.config import ModelConfig
from fmri_scale.kernels.backends import MAMBA_HINT, has_mamba
from fmri_scale.kernels.scan import reference
from fmri_scale.kernels.windows import Windows

SCANS = ("mamba_ssm", "reference")


def published_model(folder: Path, config: ModelConfig, scan: str | Path) -> nn.Module:
    """Build the clone's masked autoencoder of a configuration, half of the windows hidden.

    Raises
    ------
    SystemExit
        With one line that says what is missing.
    """
    source = folder / "models" / "neurostorm.py"
    if not source.exists():
        raise SystemExit(
            f"{source}: missing; --published takes a clone of https://github.com/CUHK-AIM-Group/NeuroSTORM"
        )
    _prepare(source)
    if scan == "mamba_ssm" and not has_mamba():
        raise SystemExit(
            f"{source} imports mamba_ssm, whose CUDA scan (selective_scan_cuda) is not installed: {MAMBA_HINT}; "
            "or --published-scan reference, which is slow and for a check alone"
        )
    if scan == "reference":
        sys.modules["mamba_ssm"] = _stand_in()
    if isinstance(scan, Path):
        _mamba_with_its_reference(scan)
    sys.path.insert(0, str(folder))
    from models.neurostorm import NeuroSTORMMAE  # type: ignore[import-not-found]

    size = (*config.image_size, config.num_frames)
    shape = {"img_size": size, "in_chans": config.in_channels, "embed_dim": config.embed_dim}
    shape |= {"patch_size": tuple(config.patch_size), "depths": tuple(config.depths)}
    window = tuple(config.window_size)
    heads = tuple(3 * 2**i for i in range(len(config.depths)))  # of an attention that the blocks do not have
    masks = {"mask_ratio": 0.5, "spatial_mask": "window", "time_mask": "random", "last_layer_full_MSA": True}
    return NeuroSTORMMAE(**shape, window_size=window, first_window_size=window, num_heads=heads, **masks)


def published_swift(folder: Path, config: ModelConfig) -> nn.Module:
    """Build the encoder of SwiFT's clone, of a configuration's sizes, with the settings of its README.

    Raises
    ------
    SystemExit
        With one line that says what is missing.
    """
    source = folder / "project" / "module" / "models" / "swin4d_transformer_ver7.py"
    if not source.exists():
        raise SystemExit(f"{source}: missing; --swift takes a clone of https://github.com/Transconnectome/SwiFT")
    _prepare(source)
    sys.path.insert(0, str(source.parents[1]))
    from models.swin4d_transformer_ver7 import SwinTransformer4D  # type: ignore[import-not-found]

    shape = {"img_size": (*config.image_size, config.num_frames), "in_chans": config.in_channels}
    shape |= {"embed_dim": config.embed_dim, "patch_size": tuple(config.patch_size), "depths": tuple(config.depths)}
    window, heads = tuple(config.window_size), tuple(3 * 2**i for i in range(len(config.depths)))
    return SwinTransformer4D(
        **shape, window_size=window, first_window_size=window, num_heads=heads, last_layer_full_MSA=True, to_float=True
    )


def _prepare(source: Path) -> None:
    absent = [name for name in ("monai", "einops") if importlib.util.find_spec(name) is None]
    if absent:
        raise SystemExit(f"{source} imports {' and '.join(absent)}: pip install {' '.join(absent)}")
    if not torch.cuda.is_available():  # the clones mark ranges for NVIDIA's profiler, which a CPU build refuses
        torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: 0


def _mamba_with_its_reference(folder: Path) -> None:
    """Import the block of a clone of mamba as `mamba_ssm.Mamba`, its CUDA scan replaced by its own reference scan."""
    if not (folder / "mamba_ssm" / "modules" / "mamba_simple.py").exists():
        raise SystemExit(f"{folder}: not a clone of https://github.com/state-spaces/mamba")
    package = types.ModuleType("mamba_ssm")  # its own __init__ imports extensions and models that are not needed
    package.__path__ = [str(folder / "mamba_ssm")]
    sys.modules["mamba_ssm"] = package
    block: Any = importlib.import_module("mamba_ssm.modules.mamba_simple")
    scan: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    block.selective_scan_fn = scan.selective_scan_ref
    package.__dict__.update(Mamba=block.Mamba, Mamba2=_Refused)


def _stand_in() -> types.ModuleType:
    module = types.ModuleType("mamba_ssm")
    module.__dict__.update(Mamba=ReferenceMamba, Mamba2=_Refused)
    return module


class _Refused(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the reference scan stands in for Mamba alone, not for Mamba2")


class ReferenceMamba(nn.Module):
    """A Mamba-1 block by definition (Gu and Dao 2023, Mamba, section 3), with mamba_ssm's parameter names."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, self.rank, self.states = expand * d_model, math.ceil(d_model / 16), d_state
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map sequences `(sequences, length, d_model)`."""
        length = tokens.shape[1]
        x, z = self.in_proj(tokens).chunk(2, -1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., :length]).transpose(1, 2)
        dt, B, C = self.x_proj(x).split([self.rank, self.states, self.states], -1)
        dt, line = F.softplus(self.dt_proj(dt)), Windows((1, 1, 1, length), (1, 1, 1, length))
        y = reference.forward(*(v.float() for v in (x, dt, -self.A_log.exp(), B, C, self.D)), line)
        return self.out_proj(y.to(z.dtype) * F.silu(z))
