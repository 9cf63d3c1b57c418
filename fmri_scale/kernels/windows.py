"""Which token stands where: shifted windows of a 4D token grid as pure index arithmetic.

A grid of D x H x W x T tokens is stored flat in natural order (D, H, W, T), T fastest. A scan walks windows:
windows raster over (D, H, W, T) with T fastest, tokens inside a window raster d, h, w, t with t fastest, and an
odd block's windows start `shift` tokens further on every axis, cyclically (Liu et al. 2021, Swin, section 3.2;
no boundary mask). Nothing is ever rolled or partitioned: kernels compute the natural index of a window slot.
Padding is the caller's: `grid` is the padded grid, a multiple of the window on every axis.
"""

import math
from dataclasses import dataclass

import torch

from fmri_scale.kernels.kept import kept

Axes = tuple[int, int, int, int]


@dataclass(frozen=True)
class Windows:
    """Windows over a padded token grid.

    Parameters
    ----------
    grid : (D, H, W, T)
        Tokens per axis, after padding.
    window : (wd, wh, ww, wt)
        Tokens of a window per axis; divides `grid`.
    shift : (sd, sh, sw, st)
        Cyclic offset of the first window per axis, 0 <= shift < grid.

    Raises
    ------
    ValueError
        When an axis of the grid is not whole windows, or a shift lies outside the grid.
    """

    grid: Axes
    window: Axes
    shift: Axes = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        """Refuse geometry that has no whole windows."""
        for name in ("grid", "window", "shift"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name}={getattr(self, name)}: expected four numbers (D, H, W, T)")
        for axis, tokens, size, shift in zip("DHWT", self.grid, self.window, self.shift, strict=True):
            if size < 1 or tokens < 1 or tokens % size:
                raise ValueError(f"{tokens} tokens along {axis} are not whole windows of {size}: pad the grid first")
            if not 0 <= shift < tokens:
                raise ValueError(f"shift {shift} along {axis} is outside a grid of {tokens} tokens")

    @property
    def num_tokens(self) -> int:
        """Tokens of the grid."""
        return math.prod(self.grid)

    @property
    def length(self) -> int:
        """Tokens of one window."""
        return math.prod(self.window)

    @property
    def num_windows(self) -> int:
        """Windows of the grid."""
        return self.num_tokens // self.length

    def order(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the natural token index of each window slot, int64 `(num_windows, length)`; do not write to it."""
        return _order(self, torch.device(device))


@kept(64)
def _order(windows: Windows, device: torch.device) -> torch.Tensor:
    """Roll and partition an index grid once, as the published model does with the tokens themselves."""
    index = torch.arange(windows.num_tokens).view(windows.grid)
    index = index.roll([-s for s in windows.shift], dims=(0, 1, 2, 3))
    split = [n for g, w in zip(windows.grid, windows.window, strict=True) for n in (g // w, w)]
    index = index.view(split).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return index.reshape(windows.num_windows, windows.length).to(device)


def token_rows(windows: Windows, block: range, reverse: bool = False) -> torch.Tensor:
    """Rows of a flat `(batch * tokens, ...)` CPU tensor that some windows of a batch visit, step by step.

    Parameters
    ----------
    windows : Windows
        Geometry of one clip.
    block : range
        Window numbers counted through the batch: clip `b`'s window `i` is `b * num_windows + i`.
    reverse : bool
        Visit each window from its last token to its first.

    Returns
    -------
    Tensor
        int64 `(length, len(block))`, time first, contiguous.
    """
    number = torch.arange(block.start, block.stop)
    clip = torch.div(number, windows.num_windows, rounding_mode="floor")
    rows = windows.order()[number % windows.num_windows] + (clip * windows.num_tokens).unsqueeze(1)
    return (rows.flip(1) if reverse else rows).t().contiguous()
