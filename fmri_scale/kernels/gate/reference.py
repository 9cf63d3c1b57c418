"""Gate and out-projection by definition."""

from torch import Tensor
from torch.nn import functional as F

from fmri_scale.kernels.autodiff import gradients


def forward(y: Tensor, z: Tensor, weight: Tensor, past: Tensor | None = None) -> Tensor:
    """Arguments as `fmri_scale.kernels.gate.gate_linear`."""
    out = F.linear(y * F.silu(z), weight)
    return out if past is None else out + past


def backward(d_out: Tensor, y: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the three tensors by autograd."""
    return gradients(forward, (y, z, weight), d_out)
