"""Redundancy of window tokens for spatiotemporal redundancy dropout (STRD)."""

import torch

from fmri_scale.kernels.strd import reference
from fmri_scale.kernels.windows import Axes

__all__ = ["scores"]

BLOCK_WINDOWS = 64
"Windows whose L x L matrices exist at a time."


def scores(h_WLC: torch.Tensor, window: Axes, l_spat: int = 5, l_temp: int = 5) -> torch.Tensor:
    """Probability with which the published code drops each token of each window.

    Parameters
    ----------
    h_WLC : Tensor
        Mixer outputs in window order, `(windows, L, C)`.
    window : (wd, wh, ww, wt)
        Tokens of a window per axis; their product is L.
    l_spat, l_temp : int
        Edge of the spatial and temporal neighbourhood in tokens.

    Returns
    -------
    Tensor
        `(windows, L)` in [0, 1], without gradient: the published gate is a drawn constant.
    """
    if h_WLC.ndim != 3 or h_WLC.shape[1] != window[0] * window[1] * window[2] * window[3]:
        raise ValueError(f"h is {tuple(h_WLC.shape)}: expected (windows, {window} tokens, C)")
    with torch.no_grad():
        window = (window[0], window[1], window[2], window[3])  # a list would not hash
        parts = h_WLC.split(BLOCK_WINDOWS)
        return torch.cat([reference.scores(part, window, l_spat, l_temp) for part in parts])
