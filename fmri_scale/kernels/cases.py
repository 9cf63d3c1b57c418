"""Geometry that tests and benchmarks share: random small grids, and the stages of the base model.

Only geometry is made here; each operation's `cases.py` turns it into tensors.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from fmri_scale.kernels.windows import Axes, ListedWindows, Windows, window_table

Case = TypeVar("Case")
WINDOW_SIZES: tuple[Axes, ...] = ((2, 2, 2, 4), (4, 4, 4, 4), (2, 4, 2, 4))
WIDTHS = (8, 24, 40, 72)
STATES = (4, 8, 16)


@dataclass(frozen=True)
class Stage:
    """One stage of the base model (embed 36, 96 x 96 x 96 x 20 voxels)."""

    name: str
    width: int
    "Channels C of the tokens; the mixer's inner width is 2 C."
    windows: Windows
    blocks: int
    "Blocks of encoder and decoder together."


STAGES = (
    Stage("s1", 36, Windows((16, 16, 16, 20), (4, 4, 4, 4), (2, 2, 2, 2)), 4),
    Stage("s2", 72, Windows((8, 8, 8, 20), (4, 4, 4, 4), (2, 2, 2, 2)), 4),
    Stage("s3", 144, Windows((4, 4, 4, 20), (4, 4, 4, 4), (0, 0, 0, 2)), 12),
    Stage("s4", 288, Windows((2, 2, 2, 20), (2, 2, 2, 4), (0, 0, 0, 0)), 2),
)
"An odd block's shift stands for both kinds; s4 lies in the encoder alone and is never shifted."


def fit_windows(tokens: Axes, window: Axes, shift: tuple[bool, bool, bool, bool]) -> Windows:
    """Pad a grid and clamp its windows as the model does.

    An axis no longer than its window becomes one unshifted window; any other is padded to whole windows and, where
    asked, shifted by half a window.
    """
    grid, size, offset = [], [], []
    for n, w, shifted in zip(tokens, window, shift, strict=True):
        one = n <= w
        size.append(n if one else w)
        grid.append(n if one else -(-n // w) * w)
        offset.append(0 if one or not shifted else w // 2)
    return Windows(_axes(grid), _axes(size), _axes(offset))


def random_windows(rng: random.Random, max_tokens: int = 4096) -> Windows:
    """Draw a grid of 2 to 8 tokens an axis (T often no multiple of its window), a window and shifted axes."""
    while True:
        tokens = [rng.randint(2, 8) for _ in range(4)]
        shift = tuple(rng.random() < 0.5 for _ in range(4))
        windows = fit_windows(_axes(tokens), rng.choice(WINDOW_SIZES), shift)  # type: ignore[arg-type]
        if windows.num_tokens <= max_tokens:
            return windows


def listed_windows(windows: Windows, share: float, seed: int = 0) -> ListedWindows:
    """The same windows where a random share of the patches is there, one at least."""
    d, h, w, frames = windows.grid
    here = torch.rand(d, h, w, generator=torch.Generator().manual_seed(seed)) < share
    here[-1, 0, w // 2] = True
    table = window_table(here, windows.grid[:3], windows.window[:3], windows.shift[:3])
    return ListedWindows((int(here.sum()), 1, 1, frames), windows.window, (0, 0, 0, windows.shift[3]), table)


def geometry_features(windows: Windows) -> set[str]:
    """What a geometry exercises: each axis's length and shift, and which of the window sizes stand there whole."""
    found = {f"window {windows.window}"} if windows.window in WINDOW_SIZES else set()
    for axis, tokens, window, shift in zip("DHWT", windows.grid, windows.window, windows.shift, strict=True):
        found.add(f"{tokens} along {axis}")
        if tokens > window:
            found.add(f"{axis} {'shifted' if shift else 'cut, not shifted'}")
    return found


def covering(drawn: Sequence[Case], features: Callable[[Case], set[str]], cost: Callable[[Case], float]) -> list[Case]:
    """Pick a few cheap cases that together have every feature of all drawn ones, greedily and reproducibly."""
    left = set().union(*map(features, drawn))
    picked: list[Case] = []
    while left:
        picked.append(max(drawn, key=lambda case: len(features(case) & left) / cost(case)))
        left -= features(picked[-1])
    return picked


def _axes(values: list[int]) -> Axes:
    d, h, w, t = values
    return d, h, w, t
