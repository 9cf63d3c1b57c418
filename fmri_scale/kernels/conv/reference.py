"""The windowed convolution by definition: gather window order, convolve, SiLU, scatter back.

Each channel has its own K taps and sees the K - 1 tokens before it in its window (Gu & Dao 2023, Mamba, section 3.4);
before the first token stand zeros, or the given prefix.
"""

import torch
import torch.nn.functional as F

from fmri_scale.kernels.autodiff import gradients
from fmri_scale.kernels.windows import Windows, scatter


def forward(
    x_BNE: torch.Tensor,
    weight_EK: torch.Tensor,
    bias_E: torch.Tensor,
    windows: Windows,
    prefix_KE: torch.Tensor | None = None,
) -> torch.Tensor:
    """Shapes and meaning as `fmri_scale.kernels.conv.conv_silu`."""
    order = windows.order(x_BNE.device)
    rows = x_BNE[:, order].flatten(0, 1)  # (B * windows, L, E)
    taps, width = weight_EK.shape[1], x_BNE.shape[2]
    before = x_BNE.new_zeros(taps - 1, width) if prefix_KE is None else prefix_KE
    rows = torch.cat([before.expand(rows.shape[0], -1, -1), rows], 1)
    y = F.silu(F.conv1d(rows.transpose(1, 2), weight_EK.unsqueeze(1), bias_E, groups=width).transpose(1, 2))
    return scatter(y, order, x_BNE)


def backward(
    dy_BNE: torch.Tensor,
    x_BNE: torch.Tensor,
    weight_EK: torch.Tensor,
    bias_E: torch.Tensor,
    windows: Windows,
    prefix_KE: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, weight, bias and prefix by autograd."""
    before = x_BNE.new_zeros(weight_EK.shape[1] - 1, x_BNE.shape[2]) if prefix_KE is None else prefix_KE
    return gradients(lambda x, w, b, p: forward(x, w, b, windows, p), (x_BNE, weight_EK, bias_E, before), dy_BNE)
