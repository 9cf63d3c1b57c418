"""Gate and out-projection in plain torch on any device; the backward pass makes the gate again."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fmri_scale.kernels.gate.reference import forward

__all__ = ["backward", "forward"]


def backward(d_out: Tensor, y: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of y, z and weight."""
    gate = F.silu(z)
    d_weight = d_out.flatten(0, -2).t() @ (y * gate).flatten(0, -2)
    d_gated = d_out @ weight
    dz = torch.ops.aten.silu_backward(d_gated * y, z)
    return d_gated.mul_(gate), dz, d_weight
