"""Which token stands where: shifted windows of a 4D token grid as pure index arithmetic, or from a list of patches.

A grid of D x H x W x T tokens is stored flat in natural order (D, H, W, T), T fastest. A scan walks windows:
windows raster over (D, H, W, T) with T fastest, tokens inside a window raster d, h, w, t with t fastest, and an
odd block's windows start `shift` tokens further on every axis, cyclically (Liu et al. 2021, Swin, section 3.2;
no boundary mask). Nothing is ever rolled or partitioned: kernels compute the natural index of a window slot.
Padding is the caller's: `grid` is the padded grid, a multiple of the window on every axis.

`ListedWindows` are the same windows where only some patches of the grid have tokens (model.brain_tokens): a window
holds those it has, in the same order, and is as long as they are; a window that has none does not exist.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    def table(self) -> torch.Tensor | None:
        """The patches of each window, where they are listed."""
        return None

    @property
    def num_tokens(self) -> int:
        """Tokens of the grid."""
        return math.prod(self.grid)

    @property
    def length(self) -> int:
        """Slots of one window."""
        return math.prod(self.window)

    @property
    def num_windows(self) -> int:
        """Windows of the grid."""
        return self.num_tokens // self.length

    def order(self, device: torch.device | str = "cpu", reverse: bool = False) -> torch.Tensor:
        """Return the natural token index of each window slot, int64 `(num_windows, length)`; do not write to it.

        With `reverse` windows are walked from their last token. A slot without a token has -1; such are the last ones.
        """
        order = _order(self, torch.device(device))
        return order.flip(1) if reverse else order

    def places(self, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the token at each place of each window, int64 `(num_windows, length)`, and where there is one.

        Places raster d, h, w, t. Where there is none the index is 0; None: there is one everywhere.
        """
        return self.order(device), None


@dataclass(frozen=True, eq=False)
class ListedWindows(Windows):
    """Windows over M patches of a grid, listed in raster order, each with T padded frames; made from `window_table`.

    Parameters
    ----------
    grid : (M, 1, 1, T)
        Tokens as they are stored, frames fastest.
    window : (wd, wh, ww, wt)
        Places of a window per axis; wt divides T.
    shift : (0, 0, 0, st)
        Cyclic offset of the first window in time; that in space is in the table.
    listed : Tensor
        int32, of `window_table`.

    Raises
    ------
    ValueError
        When the frames are not whole windows, or the table is not one of M patches.
    """

    listed: torch.Tensor | None = None

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        for name in ("grid", "window", "shift"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        if self.listed is None or self.grid[1:3] != (1, 1) or self.num_lists < 1:
            raise ValueError(f"grid={self.grid}: expected (M, 1, 1, T) and the table of M patches")
        if self.grid[3] % self.window[3] or not 0 <= self.shift[3] < self.grid[3] or any(self.shift[:3]):
            raise ValueError(
                f"window={self.window}, shift={self.shift}: expected whole windows of {self.grid[3]} frames"
            )

    @property
    def table(self) -> torch.Tensor | None:
        """Where each window's patches start, the patches, their places in the windows."""
        return self.listed

    @property
    def num_lists(self) -> int:
        """Windows in space that hold any patch."""
        assert self.listed is not None
        return len(self.listed) - 1 - 2 * self.grid[0]

    @property
    def num_windows(self) -> int:
        """Windows that hold any token."""
        return self.num_lists * (self.grid[3] // self.window[3])

    def order(self, device: torch.device | str = "cpu", reverse: bool = False) -> torch.Tensor:
        """As of `Windows`."""
        start, patch_M, _ = self._parts(device)
        row = torch.arange(math.prod(self.window[:3]), device=device)
        count = start.diff().unsqueeze(1)
        slot = start[:-1, None] + (count - 1 - row if reverse else row)
        patch = torch.where(row < count, patch_M[slot.clamp(0, self.grid[0] - 1)], -1)
        return self._with_frames(patch, reverse)

    def places(self, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor | None]:
        """As of `Windows`."""
        start, patch_M, place_M = self._parts(device)
        number_M = torch.searchsorted(start, torch.arange(self.grid[0], device=device), right=True) - 1
        patch = torch.full((self.num_lists, math.prod(self.window[:3])), -1, device=device)
        patch[number_M, place_M] = patch_M
        order = self._with_frames(patch, False)
        return order.clamp(min=0), order >= 0

    def _parts(self, device: torch.device | str) -> list[torch.Tensor]:
        assert self.listed is not None
        return list(self.listed.to(device, torch.int64).split([self.num_lists + 1, self.grid[0], self.grid[0]]))

    def _with_frames(self, patch: torch.Tensor, reverse: bool) -> torch.Tensor:
        """Tokens of each window, (num_windows, length), of its patches (num_lists, places), -1 for none."""
        frames, span = self.grid[3], self.window[3]
        frame = ((torch.arange(frames, device=patch.device) + self.shift[3]) % frames).view(-1, 1, span)
        frame = frame.flip(2) if reverse else frame
        token = torch.where(patch[:, None, :, None] < 0, -1, patch[:, None, :, None] * frames + frame)
        return token.reshape(self.num_windows, self.length)


def windows_of(grid: Sequence[int], window: Sequence[int], shift: Sequence[int], table: torch.Tensor | None) -> Windows:
    """Return the windows that an operator was called with."""
    axes = (tuple(grid), tuple(window), tuple(shift))
    return Windows(*axes) if table is None else ListedWindows(*axes, table)  # type: ignore[arg-type]


def window_table(
    active: torch.Tensor, grid: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> torch.Tensor:
    """List the patches of each window in space.

    Parameters
    ----------
    active : Tensor
        bool `(D, H, W)` on the CPU, the patches that have tokens; any number but none.
    grid, window, shift : (d, h, w)
        The grid padded to whole windows, the window, and the cyclic offset of the first one.

    Returns
    -------
    Tensor
        int32: for each window that holds any patch where its patches start among all, and their number; the patches
        by window, numbered in raster order of the grid; the place of each in its window (raster d, h, w).
    """
    number = torch.full(tuple(grid), -1)
    have = tuple(slice(n) for n in active.shape)
    number[have] = torch.where(active, active.flatten().cumsum(0).view(active.shape) - 1, -1)
    order = _order(Windows((*grid, 1), (*window, 1), (*shift, 0)), torch.device("cpu"))  # type: ignore[arg-type]
    patch = number.flatten()[order]
    patch = patch[(patch >= 0).any(1)]
    start = torch.cat([torch.zeros(1, dtype=torch.int64), (patch >= 0).sum(1).cumsum(0)])
    return torch.cat([start, patch[patch >= 0], (patch >= 0).nonzero()[:, 1]]).int()


@kept(64)
def _order(windows: Windows, device: torch.device) -> torch.Tensor:
    """Roll and partition an index grid once, as the published model does with the tokens themselves."""
    index = torch.arange(windows.num_tokens).view(windows.grid)
    index = index.roll([-s for s in windows.shift], dims=(0, 1, 2, 3))
    split = [n for g, w in zip(windows.grid, windows.window, strict=True) for n in (g // w, w)]
    index = index.view(split).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return index.reshape(windows.num_windows, windows.length).to(device)


def scatter(rows: torch.Tensor, order: torch.Tensor, like_BNE: torch.Tensor) -> torch.Tensor:
    """Return `(B, N, E)` in natural order of rows `(B * windows, length, E)` in that of `order`, of any backend."""
    y, index = rows.reshape(like_BNE.shape[0], order.numel(), -1), order.flatten()
    if order.numel() != like_BNE.shape[1]:
        real = (index >= 0).nonzero().squeeze(1)
        y, index = y[:, real], index[real]
    return torch.empty_like(y).index_copy(1, index, y)


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
        int64 `(length, len(block))`, time first, contiguous; negative where a window has no more tokens.
    """
    return _rows(windows, windows.order(reverse=reverse), torch.arange(block.start, block.stop))


def _rows(windows: Windows, order: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    clip = torch.div(number, windows.num_windows, rounding_mode="floor")
    first = (clip * windows.num_tokens).unsqueeze(1)
    rows = order[number % windows.num_windows]
    rows = rows + first if windows.table is None else torch.where(rows < 0, -1, rows + first)
    return rows.t().contiguous()


class Rows(NamedTuple):
    """The rows of `token_rows`, flat.

    Attributes
    ----------
    at : int64 `(length * windows,)`; 0 where there is none.
    real : bool, where there is one; None: everywhere.
    """

    at: torch.Tensor
    real: torch.Tensor | None

    def clear(self, values: torch.Tensor) -> torch.Tensor:
        """Return values by row with zeros where there is no row, in place."""
        return values if self.real is None else values.masked_fill_(~self.real.unsqueeze(1), 0.0)

    def write(self, flat: torch.Tensor, values: torch.Tensor) -> None:
        """Put values by row where the rows are."""
        if self.real is None:
            flat.index_copy_(0, self.at, values)
        else:
            flat.index_copy_(0, self.at[self.real], values[self.real])


class Visits:
    """`Rows` of any block of a batch's windows.

    Windows of lists are numbered from the longest to the shortest, and a block is as long as its first one.
    """

    def __init__(self, windows: Windows, batch: int, reverse: bool = False) -> None:
        self._windows = windows
        self._order = windows.order(reverse=reverse)
        self._by_length: torch.Tensor | None = None
        if windows.table is not None:
            lengths = (self._order >= 0).sum(1).repeat(batch)
            self._lengths, self._by_length = lengths.sort(descending=True, stable=True)

    def __call__(self, block: range) -> Rows:
        """Return the rows that the windows of a block visit."""
        if self._by_length is None:
            return Rows(_rows(self._windows, self._order, torch.arange(block.start, block.stop)).flatten(), None)
        rows = _rows(self._windows, self._order, self._by_length[block.start : block.stop])
        rows = rows[: int(self._lengths[block.start])].flatten()
        return Rows(rows.clamp(min=0), rows >= 0)
