"""Redundancy scores in torch, some windows at a time, so that few L x L matrices exist at once; on any device."""

import torch

from fmri_scale.kernels.strd import reference
from fmri_scale.kernels.windows import Axes

BLOCK_WINDOWS = 64
"Windows whose L x L matrices exist at a time."


def scores(
    h_WLC: torch.Tensor, window: Axes, l_spat: int, l_temp: int, real_WL: torch.Tensor | None = None
) -> torch.Tensor:
    """Shapes and meaning as `fmri_scale.kernels.strd.scores`."""
    parts = h_WLC.split(BLOCK_WINDOWS)
    real = [None] * len(parts) if real_WL is None else real_WL.split(BLOCK_WINDOWS)
    return torch.cat([reference.scores(p, window, l_spat, l_temp, r) for p, r in zip(parts, real, strict=True)])
