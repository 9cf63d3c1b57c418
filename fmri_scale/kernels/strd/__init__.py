"""Redundancy of window tokens for spatiotemporal redundancy dropout (STRD)."""

import torch

from fmri_scale.kernels.strd.op import strd_scores_op
from fmri_scale.kernels.strd.redundancy import redundancy
from fmri_scale.kernels.windows import Axes

__all__ = ["redundancy", "scores"]


def scores(
    h_WLC: torch.Tensor,
    window: Axes,
    l_spat: int = 5,
    l_temp: int = 5,
    backend: str = "auto",
    real_WL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Probability with which the published code drops each token of each window.

    Parameters
    ----------
    h_WLC : Tensor
        Mixer outputs in window order, `(windows, L, C)`.
    window : (wd, wh, ww, wt)
        Tokens of a window per axis; their product is L.
    l_spat, l_temp : int
        Edge of the spatial and temporal neighbourhood in tokens.
    backend : str
        `auto`, `torch` or `triton`; the Triton kernel keeps no L x L matrix in memory.
    real_WL : Tensor, optional
        bool `(windows, L)`, where there is a token: others are no part of any softmax and nobody's neighbours, and
        their own scores mean nothing. None: everywhere.

    Returns
    -------
    Tensor
        `(windows, L)` in [0, 1], without gradient: the published gate is a drawn constant.
    """
    if h_WLC.ndim != 3 or h_WLC.shape[1] != window[0] * window[1] * window[2] * window[3]:
        raise ValueError(f"h is {tuple(h_WLC.shape)}: expected (windows, {window} tokens, C)")
    if real_WL is not None and real_WL.shape != h_WLC.shape[:2]:
        raise ValueError(f"real is {tuple(real_WL.shape)}: expected {tuple(h_WLC.shape[:2])}")
    with torch.no_grad():
        return strd_scores_op(h_WLC, list(window), l_spat, l_temp, backend, real_WL)
