"""Redundancy scores in torch, some windows at a time, so that few L x L matrices exist at once; on any device."""

import torch

from fmri_scale.kernels.strd import reference
from fmri_scale.kernels.windows import Axes

BLOCK_WINDOWS = 64
"Windows whose L x L matrices exist at a time."


def scores(h_WLC: torch.Tensor, window: Axes, l_spat: int, l_temp: int) -> torch.Tensor:
    """Shapes and meaning as `fmri_scale.kernels.strd.scores`."""
    parts = h_WLC.split(BLOCK_WINDOWS)
    return torch.cat([reference.scores(part, window, l_spat, l_temp) for part in parts])
