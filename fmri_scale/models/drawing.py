"""Draws that go beyond a number of units: until enough of the brain is hidden, of several strategies, by the step.

All take the keyed order of units (`kernels.mask.unit_order`), so they are the same on every device and rank and after a
resume. Shape suffixes: B clips, U units, M positions of a frame, T frames, N = M*T tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fmri_scale.config import MaskConfig
from fmri_scale.errors import ConfigError
from fmri_scale.kernels.mask import unit_order

STRATEGY_SEED = 0x5DEECE66D
"Separates the draw of a clip's strategy from the draw of its units."
SHARES = 1 << 16
"Steps in which the weights of a mixture are told apart."


def brain_units(
    ratio: float, unit_N: Tensor, units: int, brain_N: Tensor, seed: int, epochs_B: Tensor, clip_ids_B: Tensor
) -> Tensor:
    """Hide units in random order until as near as can be to `ratio` of the brain tokens is hidden.

    Parameters
    ----------
    unit_N : int64, the unit each token lies in.
    brain_N : bool, tokens that hold brain; no others are hidden.

    Returns
    -------
    bool `[B, N]`; the hidden number differs from `round(ratio * brain tokens)` by at most half of the largest unit,
    and not at all where units hold one token.

    Raises
    ------
    ConfigError : the ratio hides none or all of the brain tokens.
    """
    total = int(brain_N.sum())
    wanted = round(ratio * total)
    if not 0 < wanted < total:
        raise ConfigError(f"mask.ratio={ratio} hides {wanted} of {total} brain tokens: take another ratio")
    order_BU = unit_order(seed, epochs_B, clip_ids_B, units)
    weight_U = torch.zeros(units, dtype=torch.int64, device=unit_N.device).index_add_(0, unit_N, brain_N.long())
    hidden_BU = weight_U[order_BU.argsort(1)].cumsum(1)  # brain tokens hidden after so many units, and one more
    away_BU = 2 * (hidden_BU - wanted).abs() + (hidden_BU > wanted).long()  # of two as near, the smaller
    away_BU.masked_fill_(hidden_BU == 0, 4 * total)
    last_B = away_BU.argmin(1, keepdim=True)
    return (order_BU <= last_B)[:, unit_N] & brain_N


def drawn_strategies(weights: dict[str, float], seed: int, epochs_B: Tensor, clip_ids_B: Tensor) -> dict[str, Tensor]:
    """Draw one strategy for each clip.

    Returns
    -------
    bool `[B]` by strategy, in alphabetical order; each clip is in exactly one.
    """
    first = torch.zeros(1, dtype=torch.int64, device=clip_ids_B.device)
    place_B = unit_order(seed ^ STRATEGY_SEED, epochs_B, clip_ids_B, SHARES, first)[:, 0]
    total, below, out = sum(weights.values()), 0.0, {}
    names = [name for name in sorted(weights) if weights[name] > 0]
    for name in names:
        start, below = round(below * SHARES), below + weights[name] / total
        stop = SHARES if name == names[-1] else round(below * SHARES)
        out[name] = (place_B >= start) & (place_B < stop)
    return out


def at_step(mask: MaskConfig, step: int | None) -> MaskConfig:
    """Return the mask of a step of its schedule; None is the schedule's end.

    Ratio and mixture move linearly over `schedule_steps` from `ratio_start` and `mixture_start`, where these are set.
    """
    if step is None or step >= mask.schedule_steps:
        return mask
    done = step / mask.schedule_steps
    ratio = mask.ratio_start + done * (mask.ratio - mask.ratio_start) if mask.ratio_start else mask.ratio
    mixture = dict(mask.mixture)
    if mask.mixture_start:
        first, last = _shares(mask.mixture_start), _shares(mask.mixture)
        names = sorted(set(first) | set(last))
        mixture = {name: (1 - done) * first.get(name, 0.0) + done * last.get(name, 0.0) for name in names}
    return replace(mask, ratio=ratio, mixture=mixture)


def _shares(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
