"""Selection by definition: what steers the scan, from what the convolution gave."""

from torch import Tensor
from torch.nn import functional as F


def forward(mixed: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments as `fmri_scale.kernels.select.select`; dt and the selection."""
    selection = F.linear(mixed, x_proj)
    return F.softplus(F.linear(selection[..., : dt_proj.shape[1]], dt_proj, dt_bias)), selection
