"""Redundancy scores in Triton: attention is made twice in registers and never stored.

A program owns ROWS tokens of a window. The first pass over the window's tokens keeps, per row, the running maximum
and sum of the softmax and what is largest and summed inside the two neighbourhoods; the second makes the attention
again and adds up the clamped elements of `strd/reference.py`. Products are in the dtype of h, everything else in
float32.
"""

import math

import torch
import triton
import triton.language as tl

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.jit import LOG2_E, launch
from fmri_scale.kernels.strd.reference import EPS
from fmri_scale.kernels.windows import Axes

ROWS, COLUMNS, CHANNELS = 32, 32, 32
"Tile of the attention, and channels of a product at a time."


@triton.jit
def strd_kernel(
    h_ptr,
    score_ptr,
    real_ptr,
    C: tl.constexpr,
    WINDOW: tl.constexpr,
    LISTED: tl.constexpr,
    REACH_SPACE: tl.constexpr,
    REACH_TIME: tl.constexpr,
    SCALE: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Scores of ROWS tokens (program axis 1) of a window (axis 0); SCALE takes products to exponents of two."""
    L: tl.constexpr = WINDOW[0] * WINDOW[1] * WINDOW[2] * WINDOW[3]
    h_ptr += tl.program_id(0).to(tl.int64) * L * C
    if LISTED:
        real_ptr += tl.program_id(0).to(tl.int64) * L
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    # finite where the first columns may all be missing: -inf less -inf is no number
    top = tl.full([ROWS], -1e38 if LISTED else -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    top_space = tl.full([ROWS], -float("inf"), tl.float32)
    top_time = tl.full([ROWS], -float("inf"), tl.float32)
    sum_space = tl.zeros([ROWS], tl.float32)
    sum_time = tl.zeros([ROWS], tl.float32)
    num_space = tl.zeros([ROWS], tl.float32)
    num_time = tl.zeros([ROWS], tl.float32)
    for first in range(0, L, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        logit = _logits(h_ptr, real_ptr, i, j, C, L, LISTED, SCALE, CHANNELS, ROWS, COLUMNS)
        space, time = _near(i, j, real_ptr, WINDOW, LISTED, REACH_SPACE, REACH_TIME)
        higher = tl.maximum(top, tl.max(logit, 1))
        shrink = tl.exp2(top - higher)
        weight = tl.exp2(logit - higher[:, None])
        total = total * shrink + tl.sum(weight, 1)
        sum_space = sum_space * shrink + tl.sum(tl.where(space, weight, 0.0), 1)
        sum_time = sum_time * shrink + tl.sum(tl.where(time, weight, 0.0), 1)
        top_space = tl.maximum(top_space, tl.max(tl.where(space, logit, -float("inf")), 1))
        top_time = tl.maximum(top_time, tl.max(tl.where(time, logit, -float("inf")), 1))
        num_space += tl.sum(space.to(tl.float32), 1)
        num_time += tl.sum(time.to(tl.float32), 1)
        top = higher
    by_space = tl.exp2(top_time - top) / total / (sum_space / total + EPS)
    by_time = tl.exp2(top_space - top) / total / (sum_time / total + EPS)
    factor = 0.5 * (tl.where(num_space > 0, by_space, 0.0) + tl.where(num_time > 0, by_time, 0.0))
    score = tl.zeros([ROWS], tl.float32)
    for first in range(0, L, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        logit = _logits(h_ptr, real_ptr, i, j, C, L, LISTED, SCALE, CHANNELS, ROWS, COLUMNS)
        attention = tl.exp2(logit - top[:, None]) / total[:, None]
        score += tl.sum(tl.minimum(factor[:, None] * attention, 1.0), 1)
    score = tl.minimum(score / tl.maximum(num_space + num_time, 1.0), 1.0)
    tl.store(score_ptr + tl.program_id(0).to(tl.int64) * L + i, score.to(score_ptr.dtype.element_ty), mask=i < L)


@triton.jit
def _logits(
    h_ptr,
    real_ptr,
    i,
    j,
    C: tl.constexpr,
    L: tl.constexpr,
    LISTED: tl.constexpr,
    SCALE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Exponents (of two) of the attention of rows i to columns j, [ROWS, COLUMNS], -inf where there is no token."""
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, C, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        rows = tl.load(h_ptr + i[:, None] * C + c[None, :], mask=(i < L)[:, None] & (c < C)[None, :], other=0.0)
        columns = tl.load(h_ptr + j[None, :] * C + c[:, None], mask=(j < L)[None, :] & (c < C)[:, None], other=0.0)
        sums = tl.dot(rows, columns, sums, input_precision="ieee")
    return tl.where(_there(j, real_ptr, L, LISTED)[None, :], sums * SCALE, -float("inf"))


@triton.jit
def _there(j, real_ptr, L: tl.constexpr, LISTED: tl.constexpr):
    """Which places j have a token."""
    if LISTED:
        return tl.load(real_ptr + j, mask=j < L, other=0) != 0
    else:
        return j < L


@triton.jit
def _near(
    i,
    j,
    real_ptr,
    WINDOW: tl.constexpr,
    LISTED: tl.constexpr,
    REACH_SPACE: tl.constexpr,
    REACH_TIME: tl.constexpr,
):
    """Which columns j are spatial and which are temporal neighbours of rows i, [ROWS, COLUMNS] each."""
    t = tl.abs((i % WINDOW[3])[:, None] - (j % WINDOW[3])[None, :])
    w = tl.abs((i // WINDOW[3] % WINDOW[2])[:, None] - (j // WINDOW[3] % WINDOW[2])[None, :])
    h = tl.abs(
        (i // (WINDOW[3] * WINDOW[2]) % WINDOW[1])[:, None] - (j // (WINDOW[3] * WINDOW[2]) % WINDOW[1])[None, :]
    )
    d = tl.abs(
        (i // (WINDOW[3] * WINDOW[2] * WINDOW[1]))[:, None] - (j // (WINDOW[3] * WINDOW[2] * WINDOW[1]))[None, :]
    )
    inside = _there(j, real_ptr, WINDOW[0] * WINDOW[1] * WINDOW[2] * WINDOW[3], LISTED)[None, :]
    apart = tl.maximum(tl.maximum(d, h), w)
    space = inside & (apart > 0) & (apart <= REACH_SPACE) & (t == 0)
    time = inside & (apart == 0) & (t > 0) & (t <= REACH_TIME)
    return space, time


def scores(
    h_WLC: torch.Tensor, window: Axes, l_spat: int, l_temp: int, real_WL: torch.Tensor | None = None
) -> torch.Tensor:
    """Shapes and meaning as `fmri_scale.kernels.strd.scores`."""
    if h_WLC.dtype == torch.float64:
        raise ConfigError("kernel backend triton: it computes in float32 and bfloat16; take torch for float64")
    h_WLC = h_WLC.contiguous()
    windows, length, width = h_WLC.shape
    score = torch.empty(windows, length, dtype=h_WLC.dtype, device=h_WLC.device)
    constants = {"C": width, "WINDOW": window, "REACH_SPACE": l_spat // 2, "REACH_TIME": l_temp // 2, "EPS": EPS}
    constants |= {"SCALE": width**-0.5 * LOG2_E.value, "ROWS": ROWS, "COLUMNS": COLUMNS, "CHANNELS": CHANNELS}
    grid = (windows, math.ceil(length / ROWS))
    constants["LISTED"] = real_WL is not None
    real = None if real_WL is None else real_WL.to(torch.int8).contiguous()
    launch(strd_kernel, grid, h_WLC.device, h_WLC, score, real, **constants, num_warps=4)
    return score
