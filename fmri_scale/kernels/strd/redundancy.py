"""How much of a token its neighbours in space and time say already: what redundancy dropout of form `paper` acts on.

For each token of a window: the squared cosine with its most similar neighbour, the share of the token that this
neighbour explains; in space (same frame) and in time (same place) apart, then their mean. 1 for tokens equal to a
neighbour of both kinds, near 0 for independent ones. The method's text lets dropping grow with redundancy; the
published formula (`scores`) falls with it, since its softmax over a window of equal tokens is small everywhere.
In torch on every device; matrices are per frame and per place, some windows at a time, never L x L.
"""

import torch

from fmri_scale.kernels.kept import kept
from fmri_scale.kernels.windows import Axes

BLOCK_WINDOWS = 128
"Windows whose similarities exist at a time."


@torch.no_grad()
def redundancy(
    h_WLC: torch.Tensor, window: Axes, l_spat: int = 5, l_temp: int = 5, real_WL: torch.Tensor | None = None
) -> torch.Tensor:
    """Redundancy of each token of each window.

    Parameters
    ----------
    h_WLC : Tensor
        Tokens in window order, `(windows, L, C)`.
    window : (wd, wh, ww, wt)
        Tokens of a window per axis; their product is L.
    l_spat, l_temp : int
        Edge of the spatial and temporal neighbourhood in tokens, as of `scores`.
    real_WL : Tensor, optional
        bool `(windows, L)`, where there is a token; the others, which are zeros, are nobody's neighbours.

    Returns
    -------
    Tensor
        float32 `(windows, L)` in [0, 1], without gradient; 0 for a token without neighbours.
    """
    if h_WLC.ndim != 3 or h_WLC.shape[1] != window[0] * window[1] * window[2] * window[3]:
        raise ValueError(f"h is {tuple(h_WLC.shape)}: expected (windows, {window} tokens, C)")
    near = _near(window, l_spat, l_temp, h_WLC.device)
    parts = h_WLC.split(BLOCK_WINDOWS)
    real = [None] * len(parts) if real_WL is None else real_WL.split(BLOCK_WINDOWS)
    return torch.cat([_block(p, window, *near, r) for p, r in zip(parts, real, strict=True)])


def _block(
    h_WLC: torch.Tensor, window: Axes, near_SS: torch.Tensor, near_TT: torch.Tensor, real_WL: torch.Tensor | None
) -> torch.Tensor:
    windows, length, width = h_WLC.shape
    frames = window[3]
    unit_WSTC = torch.nn.functional.normalize(h_WLC.float(), dim=-1).view(windows, length // frames, frames, width)
    space_WTS = _explained(unit_WSTC.transpose(1, 2), near_SS)
    time_WST = _explained(unit_WSTC, near_TT)
    in_space, in_time = near_SS.any(1).view(1, -1, 1), near_TT.any(1).view(1, 1, -1)
    if real_WL is not None:  # a patch is there in all frames or in none, so time has the neighbours that it always has
        there_WS = real_WL.view(windows, length // frames, frames)[:, :, 0]
        in_space = (near_SS & there_WS.unsqueeze(1)).any(2).unsqueeze(2)
    kinds = in_space.float() + in_time.float()
    return ((space_WTS.transpose(1, 2) + time_WST) / kinds.clamp(min=1)).flatten(1)


def _explained(unit_XNC: torch.Tensor, near_NN: torch.Tensor) -> torch.Tensor:
    """Squared cosine of each of N unit vectors with its most similar neighbour; unlike signs explain nothing."""
    cosine = (unit_XNC @ unit_XNC.transpose(-1, -2)).masked_fill_(~near_NN, 0.0)
    return cosine.amax(-1).clamp_(0.0, 1.0).square_()


@kept(32)
def _near(window: Axes, l_spat: int, l_temp: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Which places of a frame are neighbours, bool (S, S), and which frames of a place, (T, T); none of itself."""
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in window[:3]), indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes], 1)
    near_SS = ((place[:, None] - place[None, :]).abs() <= l_spat // 2).all(-1)
    frame = torch.arange(window[3], device=device)
    near_TT = (frame[:, None] - frame[None, :]).abs() <= l_temp // 2
    return near_SS.fill_diagonal_(False), near_TT.fill_diagonal_(False)
