"""Redundancy scores by definition: the published drop probability of a window's tokens, with the N x N matrix.

A = softmax(h h^T / sqrt(C)) over the tokens of a window stands for attention. Token i has a spatial neighbourhood
(same frame, at most l_spat // 2 away on each axis) and a temporal one (same place, at most l_temp // 2 frames away),
itself excluded. With f the largest and s the summed attention of i inside a neighbourhood, the published code drops
i with probability  sum_j clamp((f_temp A_ij / s_spat + f_spat A_ij / s_temp) / 2, 0, 1) / (|spat| + |temp|), clamped
to [0, 1] (Spatiotemporal Redundancy Dropout, NeuroSTORM 2025, eq. 1-3, as its code computes it).
"""

import torch

from fmri_scale.kernels.kept import kept
from fmri_scale.kernels.windows import Axes

EPS = 1e-8
"The published guard of the two denominators."


def scores(
    h_WLC: torch.Tensor, window: Axes, l_spat: int, l_temp: int, real_WL: torch.Tensor | None = None
) -> torch.Tensor:
    """Shapes and meaning as `fmri_scale.kernels.strd.scores`."""
    spatial, temporal = neighbourhoods(window, l_spat, l_temp, h_WLC.device)
    logits = h_WLC @ h_WLC.transpose(1, 2) * h_WLC.shape[2] ** -0.5
    if real_WL is not None:
        logits = logits.masked_fill(~real_WL.unsqueeze(1), -torch.inf)
        spatial, temporal = (near & real_WL.unsqueeze(1) for near in (spatial, temporal))
    attention = torch.softmax(logits, dim=-1)
    f_spat, s_spat, n_spat = _inside(attention, spatial)
    f_temp, s_temp, n_temp = _inside(attention, temporal)
    by_space = f_temp * (n_spat > 0) / (s_spat + EPS)
    by_time = f_spat * (n_temp > 0) / (s_temp + EPS)
    weight = 0.5 * (by_space + by_time)
    element = (weight.unsqueeze(-1) * attention).clamp(0.0, 1.0)
    return (element.sum(-1) / (n_spat + n_temp).clamp(min=1.0)).clamp(0.0, 1.0)


@kept(32)
def neighbourhoods(
    window: Axes, l_spat: int, l_temp: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spatial and temporal neighbours of every token of a window, bool `(L, L)` each; do not write to them."""
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in window), indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes], 1)
    apart = (place[:, None] - place[None, :]).abs()
    other = apart.sum(-1) > 0
    near = (apart[..., :3] <= l_spat // 2).all(-1)
    spatial = near & (apart[..., 3] == 0) & other
    temporal = (apart[..., :3] == 0).all(-1) & (apart[..., 3] <= l_temp // 2) & other
    return spatial, temporal


def _inside(attention: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest and summed attention of each token inside its neighbourhood, and the neighbourhood's size."""
    within = attention * near
    return within.amax(-1), within.sum(-1), near.sum(-1).to(attention.dtype)
