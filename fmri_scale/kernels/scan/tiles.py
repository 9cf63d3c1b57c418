"""Channel tiles of the Triton scan: which channel and state a thread holds, and the parameters that go with them.

A program owns MAIN + TAIL channels (64 + 8, say: widths are 72 * 2^k in the base model) in two tiles instead of a
padded 128. A tile is [S, COUNT / 8, 8]: states, neighbouring channels that one thread holds, lanes.
"""

import triton
import triton.language as tl

from fmri_scale.kernels.jit import LOG2_E, load


@triton.jit
def channels(COUNT: tl.constexpr):
    """Channel of every place of a tile [COUNT / 8, 8]: the first axis counts the neighbours that a thread holds."""
    LANES: tl.constexpr = min(COUNT, 8)
    return tl.arange(0, COUNT // LANES)[:, None] + tl.arange(0, LANES)[None, :] * (COUNT // LANES)


@triton.jit
def state_places(first, n, S: tl.constexpr, COUNT: tl.constexpr):
    """Places in an (E, S) array of a tile's states, [S, COUNT], columns in the order of `channels` flattened.

    Read so and reshaped to [S, COUNT / 8, 8], A fixes the layout of all states: states and then the last axis are
    spread over the lanes, the middle axis is a thread's own.
    """
    LANES: tl.constexpr = min(COUNT, 8)
    column = tl.arange(0, COUNT)
    e = column % LANES * (COUNT // LANES) + column // LANES
    return (first + e)[None, :] * S + n[:, None], e


@triton.jit
def parameters(
    a_ptr,
    d_ptr,
    h0_ptr,
    first,
    offset,
    n,
    E: tl.constexpr,
    S: tl.constexpr,
    COUNT: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_H0: tl.constexpr,
):
    """A * log2 e and the first states of a tile, [S, COUNT / 8, 8], and its skip weights."""
    LANES: tl.constexpr = min(COUNT, 8)
    place, column = state_places(first + offset, n, S, COUNT)
    ok = (column < E - first - offset)[None, :]
    a = tl.reshape(load(a_ptr + place, ok, MASKED), [S, COUNT // LANES, LANES]) * LOG2_E
    h = tl.reshape(load(h0_ptr + place, ok, MASKED), [S, COUNT // LANES, LANES]) if HAS_H0 else tl.zeros_like(a)
    e = offset + channels(COUNT)
    return a, load(d_ptr + first + e, e < E - first, MASKED), h
