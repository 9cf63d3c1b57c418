"""The shapes that follow from a model's configuration: token grids, widths and windows of every stage.

In: `ModelConfig` (voxels, patch, depths, windows). Out: one `StageShape` per encoder stage, in tokens. A clip may
have any number of frames, so time appears here only as the window's last entry. Nothing here touches a tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fmri_scale.config import ModelConfig

Grid4 = tuple[int, int, int, int]


@dataclass(frozen=True)
class StageShape:
    """One stage: `width` channels on `grid` (tokens along x, y, z), `depth` blocks over windows (x, y, z, t).

    Where `shifted`, its odd blocks start half a window further and, with `wrap`, go on at the opposite edge.
    `patches` are how many positions are computed, with model.brain_tokens; None: all.
    """

    width: int
    grid: tuple[int, int, int]
    depth: int
    window: Grid4
    shifted: bool
    wrap: bool = True
    patches: int | None = None

    @property
    def positions(self) -> int:
        """Positions of a frame that are computed."""
        return math.prod(self.grid) if self.patches is None else self.patches

    def padded_tokens(self, frames: int) -> list[int]:
        """Return, for each of its blocks, the tokens of one clip's grid rounded up to whole windows."""
        fitted = (
            effective_window((*self.grid, frames), self.window, self.shifted and block % 2 == 1, self.wrap)
            for block in range(self.depth)
        )
        if self.patches is not None:  # listed patches are padded in time alone
            return [self.patches * padded[3] for padded, _, _ in fitted]
        return [math.prod(padded) for padded, _, _ in fitted]


def token_grid(config: ModelConfig) -> tuple[int, int, int]:
    """Return the number of patches along x, y, z."""
    x, y, z = (voxels // patch for voxels, patch in zip(config.image_size, config.patch_size, strict=False))
    return x, y, z


def patch_values(config: ModelConfig) -> int:
    """Return the number of values in a patch: its voxels times the input channels."""
    return math.prod(config.patch_size[:3]) * config.in_channels


def encoder_stages(config: ModelConfig, patches: Sequence[int] | None = None) -> list[StageShape]:
    """Return the stages from fine to coarse; each halves the grid and multiplies the width.

    `patches` are those that are computed of each stage (`Backbone.num_patches`); None: all.
    """
    stages = []
    last = len(config.depths) - 1
    for i, depth in enumerate(config.depths):
        x, y, z = (n >> i for n in token_grid(config))
        window = _grid4(config.first_window_size if i == 0 else config.window_size)
        full = i == last and config.last_stage_full
        if full:
            window = (x, y, z, config.window_size[3])
        computed = None if patches is None else patches[i]
        stages.append(
            StageShape(stage_width(config, i), (x, y, z), depth, window, not full, config.wrap_shift, computed)
        )
    return stages


def decoder_stages(config: ModelConfig, patches: Sequence[int] | None = None) -> list[StageShape]:
    """Return the decoder's stages from coarse to fine; all use `window_size`, none stands for the last stage."""
    mirrored = encoder_stages(config, patches)[-2::-1]
    window = _grid4(config.window_size)
    return [StageShape(s.width, s.grid, s.depth, window, True, s.wrap, s.patches) for s in mirrored]


def stage_width(config: ModelConfig, stage: int) -> int:
    """Return the number of channels of a stage."""
    return config.embed_dim * config.channel_multiplier**stage


def drop_path_rates(config: ModelConfig) -> list[list[float]]:
    """Return the stochastic depth rate of every block by encoder stage, growing linearly from zero."""
    total = sum(config.depths)
    rates = [config.drop_path * i / max(total - 1, 1) for i in range(total)]
    starts = [sum(config.depths[:i]) for i in range(len(config.depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, config.depths, strict=True)]


def effective_window(grid: Grid4, window: Grid4, shifted: bool, wrap: bool = True) -> tuple[Grid4, Grid4, Grid4]:
    """Fit a window to a token grid (x, y, z, t).

    Without `wrap` the grid is padded by half a window more on every shifted axis, so that the window which goes on at
    the opposite edge holds nothing but padding before it: no token meets one from the other side of the brain.

    Returns
    -------
    padded : the grid rounded up to whole windows, at its ends.
    window : no larger than the grid on any axis.
    shift : half a window where `shifted` and the grid is larger than the window, else 0.
    """
    fitted = [min(n, w) for n, w in zip(grid, window, strict=True)]
    shift = [w // 2 if shifted and n > w else 0 for n, w in zip(grid, window, strict=True)]
    room = [n if wrap else n + s for n, s in zip(grid, shift, strict=True)]
    padded = [-(-n // w) * w for n, w in zip(room, fitted, strict=True)]
    return _grid4(padded), _grid4(fitted), _grid4(shift)


def _grid4(values: list[int]) -> Grid4:
    x, y, z, t = values
    return x, y, z, t
