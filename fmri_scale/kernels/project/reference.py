"""Norm and in-projection by definition."""

from torch import Tensor
from torch.nn import functional as F


def forward(x: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Arguments as `fmri_scale.kernels.project.norm_project`."""
    u = F.layer_norm(x, x.shape[-1:], gain, shift, eps)
    inner = weight.shape[0] // 2
    return F.linear(u, weight[:inner]), F.linear(u, weight[inner:])
