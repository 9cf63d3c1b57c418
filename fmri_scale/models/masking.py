"""What is hidden from the encoder: tokens, windows, tubes or atlas regions of a clip.

A mask depends on (seed, epoch, clip id) alone: not on the rank, the batch a clip came in, or a resume. Exactly
`round(ratio * units)` units of a clip are hidden. Shape suffixes: B clips, N = M*T tokens in natural order (frames
fastest), M = D*H*W positions, T frames, U units, R regions.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from fmri_scale.config import MaskConfig, ModelConfig
from fmri_scale.errors import ConfigError
from fmri_scale.kernels.mask import unit_mask
from fmri_scale.models.draws import clip_keys
from fmri_scale.models.regions import region_mask
from fmri_scale.models.shapes import token_grid
from sharding.format import GRID_SHAPE


class TokenMask(NamedTuple):
    """Hidden tokens of a batch.

    Attributes
    ----------
    hidden : bool `[B, N]`, True where a token is replaced by a mask token and scored.
    strategy : the unit that was hidden; it decides which mask token stands in.
    keys : int64 `[B]`, the clips' random keys, from which the model draws what it drops in training.
    """

    hidden: Tensor
    strategy: str
    keys: Tensor


def draw_mask(
    mask: MaskConfig,
    model: ModelConfig,
    seed: int,
    epoch: int | Tensor,
    clip_ids: Tensor,
    device: torch.device | str,
    regions: Tensor | None = None,
    num_frames: int | None = None,
) -> TokenMask:
    """Draw the masks of a batch.

    Parameters
    ----------
    mask, model : what to hide, and of which token grid.
    seed, epoch, clip_ids : the key of each clip; `epoch` is a number or int64 `[B]`, `clip_ids` int64 `[B]`.
    device : where the mask is made.
    regions : voxels of the canonical grid that each atlas region fills at each position `[R, M]`, for strategy region.
    num_frames : frames of these clips, where they differ from the configuration's.

    Raises
    ------
    ConfigError : the ratio hides nothing or everything of this grid, or strategy region lacks its atlas.
    """
    frames = model.num_frames if num_frames is None else num_frames
    clip_ids = clip_ids.to(device)
    epochs = torch.as_tensor(epoch, dtype=torch.int64, device=clip_ids.device).expand_as(clip_ids)
    if mask.strategy == "region":
        if regions is None:
            raise ConfigError("mask.strategy=region: no atlas was given; set mask.atlas to a label image")
        counts_RM, voxels = regions.to(device, torch.int64), math.prod(GRID_SHAPE) // math.prod(token_grid(model))
        hidden_BN = region_mask(counts_RM, voxels, frames, mask.ratio, mask.tube_len, seed, epochs, clip_ids)
    else:
        unit_N, units = unit_of_token(mask, model, frames, torch.device(device))
        count = hidden_units(mask, units)
        hidden_BN = unit_mask(seed, epochs, clip_ids, units, count, backend=model.backend)[:, unit_N]
    return TokenMask(hidden_BN, mask.strategy, clip_keys(seed, epochs, clip_ids))


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
    size = {
        "token": (1, 1, 1, 1),
        "window": tuple(model.window_size),
        "tube": (1, 1, 1, mask.tube_len or frames),
    }[mask.strategy]
    return _units((*token_grid(model), frames), size, device)


def masked_fractions(mask: TokenMask, brain_M: Tensor | None) -> dict[str, Tensor]:
    """Return the hidden fraction of all tokens and, given a brain, of the tokens that hold any of it.

    Parameters
    ----------
    brain_M : brain voxels in the patch at each position `[M]`.

    Returns
    -------
    `{"masked_fraction": scalar, "masked_fraction_brain": scalar}`, the second only with a brain.
    """
    hidden = mask.hidden.float()
    found = {"masked_fraction": hidden.mean()}
    if brain_M is not None:
        inside_M = (brain_M > 0).float()
        by_position_M = hidden.view(len(hidden), len(inside_M), -1).mean((0, 2))
        found["masked_fraction_brain"] = (by_position_M * inside_M).sum() / inside_M.sum().clamp(min=1)
    return found


@functools.lru_cache(maxsize=16)
def _units(grid: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    counts = [math.ceil(n / s) for n, s in zip(grid, size, strict=True)]
    unit = torch.zeros((), dtype=torch.int64)
    for n, s, count in zip(grid, size, counts, strict=True):
        unit = unit.unsqueeze(-1) * count + torch.arange(n) // s
    return unit.flatten().to(device), math.prod(counts)
