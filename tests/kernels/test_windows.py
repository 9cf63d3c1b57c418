"""Window geometry: the order of tokens is the published roll-and-partition, and bad geometry is refused."""

import random

import pytest
import torch

from fmri_scale.kernels import Windows
from fmri_scale.kernels.cases import fit_windows, random_windows
from fmri_scale.kernels.windows import token_rows


@pytest.mark.parametrize("seed", range(12))
def test_order_is_roll_then_partition(seed):
    windows = random_windows(random.Random(seed))
    tokens = torch.arange(windows.num_tokens).view(windows.grid)
    rolled = torch.roll(tokens, [-s for s in windows.shift], (0, 1, 2, 3))
    expected = []
    wd, wh, ww, wt = windows.window
    for d in range(0, windows.grid[0], wd):
        for h in range(0, windows.grid[1], wh):
            for w in range(0, windows.grid[2], ww):
                for t in range(0, windows.grid[3], wt):
                    expected.append(rolled[d : d + wd, h : h + wh, w : w + ww, t : t + wt].flatten())
    assert torch.equal(windows.order(), torch.stack(expected))


def test_every_token_stands_in_exactly_one_slot():
    windows = fit_windows((5, 6, 4, 7), (4, 4, 4, 4), (True, True, True, True))
    assert torch.equal(windows.order().flatten().sort().values, torch.arange(windows.num_tokens))


def test_rows_of_a_block_count_windows_through_the_batch():
    windows = Windows((4, 4, 2, 4), (2, 2, 2, 4), (1, 0, 0, 0))
    rows = token_rows(windows, range(3, 6))
    order = windows.order()
    assert torch.equal(rows[:, 0], order[3])
    assert torch.equal(rows[:, 2], order[1] + windows.num_tokens)
    assert torch.equal(token_rows(windows, range(3, 6), reverse=True), rows.flip(0))


@pytest.mark.parametrize(
    ("grid", "window", "shift", "words"),
    [
        ((4, 4, 4, 6), (2, 2, 2, 4), (0, 0, 0, 0), "6 tokens along T are not whole windows of 4"),
        ((4, 4, 4, 4), (2, 2, 2, 4), (4, 0, 0, 0), "shift 4 along D is outside"),
        ((4, 4, 4), (2, 2, 2), (0, 0, 0), "expected four numbers"),
    ],
)
def test_bad_geometry_is_refused_by_name(grid, window, shift, words):
    with pytest.raises(ValueError, match=words):
        Windows(grid, window, shift)
