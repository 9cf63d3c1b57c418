"""What is hidden from the encoder: tokens, windows, tubes, atlas regions or groups of regions of a clip.

A mask depends on (seed, epoch, clip id) and, with a schedule, the step: not on the rank, the batch a clip came in or a
resume. Exactly `round(ratio * units)` units of a clip are hidden, or as near as whole units allow to a share of the
tokens that hold brain (`mask.ratio_of`), so that strategies can be compared at one share. Shape suffixes: B clips,
N = M*T tokens in natural order (frames fastest), M = D*H*W positions, T frames, U units, R regions.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fmri_scale.config import MaskConfig, ModelConfig
from fmri_scale.errors import ConfigError
from fmri_scale.kernels.clips import Hidden, hidden_tokens, num_units
from fmri_scale.kernels.clips import unit_of_token as units_of_tokens
from fmri_scale.kernels.loss import hidden_values
from fmri_scale.kernels.windows import Axes
from fmri_scale.models.anatomy import Anatomy
from fmri_scale.models.drawing import at_step, brain_units, drawn_strategies
from fmri_scale.models.draws import clip_keys
from fmri_scale.models.regions import region_mask
from fmri_scale.models.shapes import token_grid
from sharding.format import GRID_SHAPE


class TokenMask(NamedTuple):
    """Hidden tokens of a batch: those that are replaced by a mask token and scored.

    Attributes
    ----------
    tokens : as the kernels take them, given token by token or drawn from each clip's key without any being listed.
    grid : tokens along x, y, z and time.
    strategy : the unit that was hidden; it decides which mask token stands in.
    keys : int64 `[B]`, the clips' random keys, from which the model draws what it drops in training.
    brain : brain voxels in the patch at each position `[M]`, where they are known: the share of them that is hidden
        is told, also where all voxels are scored.
    """

    tokens: Hidden
    grid: Axes
    strategy: str
    keys: Tensor
    brain: Tensor | None = None

    @classmethod
    def given(cls, hidden_BN: Tensor, grid: Axes, strategy: str, keys: Tensor) -> "TokenMask":
        """Return a mask that hides just these tokens."""
        return cls(Hidden(hidden_BN), grid, strategy, keys)

    @property
    def hidden(self) -> Tensor:
        """All tokens, bool `[B, N]`, True where hidden."""
        return hidden_tokens(self.tokens, len(self.keys), self.grid, self.keys.device)


def draw_mask(
    mask: MaskConfig,
    model: ModelConfig,
    seed: int,
    epoch: int | Tensor,
    clip_ids: Tensor,
    device: torch.device | str,
    anatomy: Anatomy | None = None,
    num_frames: int | None = None,
    step: int | None = None,
) -> TokenMask:
    """Draw the masks of a batch.

    Parameters
    ----------
    mask, model : what to hide, and of which token grid.
    seed, epoch, clip_ids : the key of each clip; `epoch` is a number or int64 `[B]`, `clip_ids` int64 `[B]`.
    device : where the mask is made.
    anatomy : where regions and brain lie, for the strategies region and group and for ratios of the brain.
    num_frames : frames of these clips, where they differ from the configuration's.
    step : optimizer steps done, for a mask with a schedule; None takes the schedule's end.

    Raises
    ------
    ConfigError : the ratio hides nothing or everything of this grid, or the anatomy that is needed was not given.
    """
    mask = at_step(mask, step)
    frames = model.num_frames if num_frames is None else num_frames
    grid = (*token_grid(model), frames)
    clip_ids = clip_ids.to(device)
    epochs = torch.as_tensor(epoch, dtype=torch.int64, device=clip_ids.device).expand_as(clip_ids)
    anatomy = (anatomy or Anatomy()).to(device)
    keys = clip_keys(seed, epochs, clip_ids)
    if mask.strategy != "mixture":
        tokens = _tokens(mask, model, frames, seed, epochs, clip_ids, anatomy)
        return TokenMask(tokens, grid, "region" if mask.strategy == "group" else mask.strategy, keys, anatomy.brain)
    hidden_BN = torch.zeros(len(clip_ids), math.prod(grid), dtype=torch.bool, device=device)
    for strategy, mine_B in drawn_strategies(mask.mixture, seed, epochs, clip_ids).items():
        if mine_B.any():
            part = replace(mask, strategy=strategy)
            drawn = _tokens(part, model, frames, seed, epochs[mine_B], clip_ids[mine_B], anatomy)
            hidden_BN[mine_B] = hidden_tokens(drawn, int(mine_B.sum()), grid, clip_ids.device, model.backend)
    # One mask token for all clips: it must not tell which strategy was drawn.
    return TokenMask(Hidden(hidden_BN), grid, "token", keys, anatomy.brain)


def _tokens(
    mask: MaskConfig, model: ModelConfig, frames: int, seed: int, epochs: Tensor, clip_ids: Tensor, anatomy: Anatomy
) -> Hidden:
    """Draw the hidden tokens of clips of one strategy."""
    if mask.ratio_of == "brain" and anatomy.brain is None:
        raise ConfigError("mask.ratio_of=brain: no brain was given")
    if mask.strategy in ("region", "group"):
        if anatomy.regions is None or (mask.strategy == "group" and anatomy.group is None):
            raise ConfigError(f"mask.strategy={mask.strategy}: no atlas was given; set mask.atlas")
        drawn = anatomy.grouped() if mask.strategy == "group" else anatomy
        voxels = math.prod(GRID_SHAPE) // math.prod(token_grid(model))
        return Hidden(region_mask(mask, drawn, voxels, frames, seed, epochs, clip_ids))
    grid, unit = (*token_grid(model), frames), _unit(mask, model, frames)
    units = num_units(grid, unit)
    if mask.ratio_of == "brain":
        assert anatomy.brain is not None
        brain_N = (anatomy.brain > 0).repeat_interleave(frames)
        unit_N = units_of_tokens(grid, unit, clip_ids.device)
        return Hidden(brain_units(mask.ratio, unit_N, units, brain_N, seed, epochs, clip_ids))
    return Hidden(None, epochs, clip_ids, seed, hidden_units(mask, units), unit)


def strategies(mask: MaskConfig) -> set[str]:
    """Return what may be drawn at any step: the strategy itself, or those of a mixture."""
    return set(mask.mixture) | set(mask.mixture_start) if mask.strategy == "mixture" else {mask.strategy}


def check_draws(mask: MaskConfig, model: ModelConfig, anatomy: Anatomy) -> None:
    """Raise ConfigError where a mask cannot be drawn at some step of the run: at its first or its last ratio."""
    clip = torch.zeros(1, dtype=torch.int64)
    for strategy in sorted(strategies(mask)):
        for step in (0, None):
            part = replace(at_step(mask, step), strategy=strategy, schedule_steps=0)
            draw_mask(part, model, 0, 0, clip, "cpu", anatomy)


def hidden_units(mask: MaskConfig, units: int) -> int:
    """Return how many of `units` are hidden; ConfigError where that is none or all."""
    count = round(mask.ratio * units)
    if not 0 < count < units:
        raise ConfigError(
            f"mask.ratio={mask.ratio} hides {count} of {units} units ({mask.strategy}): take another ratio or unit"
        )
    return count


def unit_of_token(mask: MaskConfig, model: ModelConfig, frames: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the unit each token belongs to, int64 `[N]`, and the number of units.

    A window is cut at the end of a grid that is not whole windows; so is the last tube of a clip.
    """
    grid, unit = (*token_grid(model), frames), _unit(mask, model, frames)
    return units_of_tokens(grid, unit, device), num_units(grid, unit)


def masked_fractions(
    mask: TokenMask, brain_M: Tensor | None, backend: str = "auto", computed_M: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the hidden fraction of all tokens and, given a brain, of the tokens that hold any of it.

    Parameters
    ----------
    brain_M : brain voxels in the patch at each position `[M]`; None takes those of the mask, if it has any.
    computed_M : int32 `[M]`, 1 for positions that have tokens, 0 for others; None: all have.

    Returns
    -------
    `{"masked_fraction": scalar, "masked_fraction_brain": scalar}`, the second only with a brain.
    """
    if computed_M is None:
        computed_M = torch.ones(math.prod(mask.grid[:3]), dtype=torch.int32, device=mask.keys.device)
    found = {"masked_fraction": _share(mask, computed_M, backend)}
    brain_M = mask.brain if brain_M is None else brain_M
    if brain_M is not None:
        found["masked_fraction_brain"] = _share(mask, (brain_M > 0).int(), backend)
    return found


def _share(mask: TokenMask, counts_M: Tensor, backend: str) -> Tensor:
    """Return which share of the tokens at positions that count (1, the others 0) is hidden, of all clips together."""
    clips = len(mask.keys)
    hidden_B = hidden_values(counts_M, mask.tokens, clips, mask.grid, backend)
    return hidden_B.sum() / (counts_M.sum() * (clips * mask.grid[3])).clamp(min=1)


def _unit(mask: MaskConfig, model: ModelConfig, frames: int) -> Axes:
    """Return the tokens that a unit spans along x, y, z and time."""
    if mask.strategy == "window":
        d, h, w, t = model.window_size
        return d, h, w, t
    return 1, 1, 1, (mask.tube_len or frames) if mask.strategy == "tube" else 1
