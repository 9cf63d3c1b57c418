"""Selection in plain torch on any device; the backward pass makes the step sizes again before softplus."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fmri_scale.kernels.select.reference import forward

__all__ = ["backward", "forward", "steps"]


def steps(selection: Tensor, dt_proj: Tensor, dt_bias: Tensor) -> Tensor:
    """Return dt of a selection."""
    return F.softplus(_raw(selection, dt_proj, dt_bias))


def backward(
    d_mixed: Tensor,
    d_dt: Tensor,
    past: Tensor | None,
    dB: Tensor,
    dC: Tensor,
    mixed: Tensor,
    selection: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the whole gradient of mixed, and those of x_proj, dt_proj and its bias."""
    raw = _raw(selection, dt_proj, dt_bias)
    d_raw = torch.ops.aten.softplus_backward(d_dt.to(raw.dtype), raw, 1.0, 20.0)
    d_dt_proj = d_raw.flatten(0, -2).t() @ selection[..., : dt_proj.shape[1]].flatten(0, -2)
    d_low = d_raw @ dt_proj if past is None else d_raw @ dt_proj + past
    d_selection = torch.cat([d_low, dB.to(raw.dtype), dC.to(raw.dtype)], -1).flatten(0, -2)
    d_x_proj = d_selection.t() @ mixed.flatten(0, -2)
    whole = torch.addmm(d_mixed.flatten(0, -2), d_selection, x_proj).view_as(mixed)
    return whole, d_x_proj, d_dt_proj, d_raw.flatten(0, -2).sum(0)


def _raw(selection: Tensor, dt_proj: Tensor, dt_bias: Tensor) -> Tensor:
    """Step sizes before softplus."""
    return F.linear(selection[..., : dt_proj.shape[1]], dt_proj, dt_bias)
