"""Head and masked loss in Triton: only hidden tokens are visited, and neither prediction nor truth is stored.

Hidden tokens are enumerated (`visits.py`), which also counts the values that count. One kernel makes the loss and the
features' gradient, a few values of the patch at a time; one makes the difference again for the gradient of the head,
summed over shares of the visits and then in a fixed order.

The gradient is multiplied as prediction minus truth and scaled afterwards in float32, so that no value is too small
for its dtype.
"""

import math

import torch
import triton
import triton.language as tl

from fmri_scale.kernels.clips import CodedClips, Hidden, places_in_list
from fmri_scale.kernels.clips_jit import (
    clip_arguments,
    hidden_layout,
    layout,
    load_affine,
    load_values,
    refuse_float64,
    row_of,
)
from fmri_scale.kernels.jit import launch
from fmri_scale.kernels.loss.visits import count_of, factor_of, values_of, visited, visits_of
from fmri_scale.kernels.windows import Axes

TILES = {torch.float32: (16, 16), torch.bfloat16: (64, 32)}
"""Tokens of a program, and values of a patch at a time: in float32 products are made by the ordinary pipes, and need
registers for their operands. Chosen from what compiles without spills."""
SHARES = 128
"Parts into which a batch's visits are cut for the head's gradient, whatever the device: sums must not depend on it."


@triton.jit
def loss_feature_kernel(
    features_ptr,
    weight_ptr,
    bias_ptr,
    factor_ptr,
    values_ptr,
    squares_ptr,
    dfeatures_ptr,
    codes_ptr,
    scale_ptr,
    gain_ptr,
    shift_ptr,
    outside_ptr,
    lookup_ptr,
    num_voxels,
    visits_ptr,
    list_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    VALUES: tl.constexpr,
    BRAIN_ONLY: tl.constexpr,
    GRADIENTS: tl.constexpr,
    GRID: tl.constexpr,
    IMAGE: tl.constexpr,
    PATCH: tl.constexpr,
    UNIT: tl.constexpr,
    MODE: tl.constexpr,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Share of the loss of TOKENS visits (axis 0) of a clip (axis 1), and the gradient of their features."""
    N: tl.constexpr = (LISTED if LISTED > 0 else GRID[0] * GRID[1] * GRID[2]) * GRID[3]
    P: tl.constexpr = PATCH[0] * PATCH[1] * PATCH[2]
    clip = tl.program_id(1)
    visits = tl.load(visits_ptr + clip)
    token, ok = visited(
        tl.program_id(0) * TOKENS + tl.arange(0, TOKENS),
        visits,
        clip,
        list_ptr,
        epoch_ptr,
        clip_ptr,
        seed,
        GRID,
        UNIT,
        MODE,
        UNITS,
        LEFT,
        RIGHT,
        ROUNDS,
        LISTED,
    )
    row, ok = _scored(token, ok, values_ptr, GRID, LISTED)
    c = tl.arange(0, CHANNELS)
    wide = ok[:, None] & (c < C)[None, :]
    rows = clip.to(tl.int64) * N * C + row[:, None] * C + c[None, :]
    features = tl.load(features_ptr + rows, mask=wide, other=0.0)
    affine = load_affine(gain_ptr, shift_ptr, outside_ptr, clip)
    codes_ptr += clip.to(tl.int64) * GRID[3] * num_voxels
    scale_ptr += clip.to(tl.int64) * 2 * num_voxels
    squares = tl.zeros([TOKENS], tl.float32)
    sums = tl.zeros([TOKENS, CHANNELS], tl.float32)
    stop = tl.where(tl.max(ok.to(tl.int32), 0) > 0, P, 0)
    for first in range(0, stop, VALUES):
        v = first + tl.arange(0, VALUES)
        w, difference = _difference(
            features,
            weight_ptr,
            bias_ptr,
            codes_ptr,
            scale_ptr,
            lookup_ptr,
            affine,
            token,
            ok,
            v,
            num_voxels,
            C,
            CHANNELS,
            BRAIN_ONLY,
            GRID,
            IMAGE,
            PATCH,
        )
        squares += tl.sum(difference * difference, 1)
        if GRADIENTS:
            sums = tl.dot(difference.to(w.dtype), w, sums, input_precision="ieee")
    factor = tl.load(factor_ptr + clip)
    tl.store(squares_ptr + clip * tl.num_programs(0) + tl.program_id(0), tl.sum(squares, 0) * factor)
    if GRADIENTS:
        tl.store(dfeatures_ptr + rows, (sums * (2.0 * factor)).to(dfeatures_ptr.dtype.element_ty), mask=wide)


@triton.jit
def loss_head_kernel(
    features_ptr,
    weight_ptr,
    bias_ptr,
    factor_ptr,
    values_ptr,
    dweight_ptr,
    dbias_ptr,
    codes_ptr,
    scale_ptr,
    gain_ptr,
    shift_ptr,
    outside_ptr,
    lookup_ptr,
    num_voxels,
    visits_ptr,
    list_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    VALUES: tl.constexpr,
    BRAIN_ONLY: tl.constexpr,
    GRID: tl.constexpr,
    IMAGE: tl.constexpr,
    PATCH: tl.constexpr,
    UNIT: tl.constexpr,
    MODE: tl.constexpr,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Gradient of VALUES rows (axis 1) of the head, over a share (axis 0) of a clip's visits (axis 2), into
    (clips, shares, P, C) and (clips, shares, P)."""
    N: tl.constexpr = (LISTED if LISTED > 0 else GRID[0] * GRID[1] * GRID[2]) * GRID[3]
    P: tl.constexpr = PATCH[0] * PATCH[1] * PATCH[2]
    clip = tl.program_id(2)
    shares = tl.num_programs(0)
    visits = tl.load(visits_ptr + clip)
    affine = load_affine(gain_ptr, shift_ptr, outside_ptr, clip)
    codes_ptr += clip.to(tl.int64) * GRID[3] * num_voxels
    scale_ptr += clip.to(tl.int64) * 2 * num_voxels
    c = tl.arange(0, CHANNELS)
    v = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    dweight = tl.zeros([VALUES, CHANNELS], tl.float32)
    dbias = tl.zeros([VALUES], tl.float32)
    for first in range(tl.program_id(0) * TOKENS, visits, shares * TOKENS):
        token, ok = visited(
            first + tl.arange(0, TOKENS),
            visits,
            clip,
            list_ptr,
            epoch_ptr,
            clip_ptr,
            seed,
            GRID,
            UNIT,
            MODE,
            UNITS,
            LEFT,
            RIGHT,
            ROUNDS,
            LISTED,
        )
        row, ok = _scored(token, ok, values_ptr, GRID, LISTED)
        rows = clip.to(tl.int64) * N * C + row[:, None] * C + c[None, :]
        features = tl.load(features_ptr + rows, mask=ok[:, None] & (c < C)[None, :], other=0.0)
        _, difference = _difference(
            features,
            weight_ptr,
            bias_ptr,
            codes_ptr,
            scale_ptr,
            lookup_ptr,
            affine,
            token,
            ok,
            v,
            num_voxels,
            C,
            CHANNELS,
            BRAIN_ONLY,
            GRID,
            IMAGE,
            PATCH,
        )
        dbias += tl.sum(difference, 0)
        dweight = tl.dot(tl.trans(difference.to(features.dtype)), features, dweight, input_precision="ieee")
    factor = 2.0 * tl.load(factor_ptr + clip)
    share = (clip.to(tl.int64) * shares + tl.program_id(0)) * P
    inside = (v < P)[:, None] & (c < C)[None, :]
    tl.store(dweight_ptr + share * C + v[:, None] * C + c[None, :], dweight * factor, mask=inside)
    tl.store(dbias_ptr + share + v, dbias * factor, mask=v < P)


@triton.jit
def _scored(token, ok, values_ptr, GRID: tl.constexpr, LISTED: tl.constexpr):
    """Rows of tokens, and which of `ok` have values that count. `values_ptr` says how many those of a position are or,
    of listed patches, where it stands in the list, -1 where nothing counts."""
    if LISTED > 0:
        return row_of(token, ok, values_ptr, GRID, LISTED)
    else:
        return token, ok & (tl.load(values_ptr + token // GRID[3], mask=ok, other=0) > 0)


@triton.jit
def _difference(
    features,
    weight_ptr,
    bias_ptr,
    codes_ptr,
    scale_ptr,
    lookup_ptr,
    affine,
    token,
    ok,
    v,
    num_voxels,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    BRAIN_ONLY: tl.constexpr,
    GRID: tl.constexpr,
    IMAGE: tl.constexpr,
    PATCH: tl.constexpr,
):
    """Rows v of the head, and prediction minus truth, [tokens, values] in float32, 0 where a value does not count."""
    P: tl.constexpr = PATCH[0] * PATCH[1] * PATCH[2]
    c = tl.arange(0, CHANNELS)
    w = tl.load(weight_ptr + v[:, None] * C + c[None, :], mask=(v < P)[:, None] & (c < C)[None, :], other=0.0)
    bias = tl.load(bias_ptr + v, mask=v < P, other=0.0).to(tl.float32)
    truth, counted = load_values(
        codes_ptr,
        scale_ptr,
        lookup_ptr,
        affine,
        token // GRID[3],
        token % GRID[3],
        ok,
        v,
        num_voxels,
        GRID,
        IMAGE,
        PATCH,
    )
    difference = tl.dot(features, tl.trans(w), input_precision="ieee") + (bias[None, :] - truth)
    if not BRAIN_ONLY:
        counted = ok[:, None] & (v < P)[None, :]
    return w, tl.where(counted, difference, 0.0)


def forward(
    clips: CodedClips, features, weight, bias, hidden: Hidden, brain_only: bool, with_gradients: bool, patches=None
):
    """Return the loss and its gradients; arguments as `fmri_scale.kernels.loss.masked_loss`."""
    refuse_float64(features)
    device = features.device
    features, weight, bias = features.contiguous(), weight.contiguous(), bias.contiguous()
    batch = clips.codes.shape[0]
    most, visits = visits_of(hidden, batch, clips.grid, clips.codes.device, patches)
    places = None if patches is None else places_in_list(patches, math.prod(clips.grid[:3]))
    values = values_of(clips, brain_only, places)
    constants = {**_tile(weight), "BRAIN_ONLY": brain_only, **layout(clips, hidden)}
    constants["LISTED"] = 0 if patches is None else len(patches)
    factor = factor_of(values, visits, most, batch, constants)
    programs = triton.cdiv(max(1, most), constants["TOKENS"])
    squares = torch.empty(batch, programs, dtype=torch.float32, device=device)
    d_features = torch.zeros_like(features) if with_gradients else features.new_empty(0)
    head = (features, weight, bias, factor, values if places is None else places.masked_fill_(values == 0, -1))
    rest = (*clip_arguments(clips), *visits)
    launch(
        loss_feature_kernel,
        (programs, batch),
        device,
        *head,
        squares,
        d_features,
        *rest,
        GRADIENTS=with_gradients,
        **constants,
        num_warps=4,
    )
    loss = squares.sum()
    if not with_gradients:
        return loss, d_features, weight.new_empty(0), bias.new_empty(0)
    shares = max(1, min(SHARES // batch, programs))
    d_weight = torch.empty(batch, shares, *weight.shape, dtype=torch.float32, device=device)
    d_bias = torch.empty(batch, shares, len(bias), dtype=torch.float32, device=device)
    grid = (shares, triton.cdiv(len(bias), constants["VALUES"]), batch)
    launch(loss_head_kernel, grid, device, *head, d_weight, d_bias, *rest, **constants, num_warps=4)
    return loss, d_features, d_weight.sum((0, 1)).to(weight.dtype), d_bias.sum((0, 1)).to(bias.dtype)


def hidden_values(values, hidden: Hidden, batch: int, grid: Axes) -> torch.Tensor:
    """Arguments and result as `fmri_scale.kernels.loss.hidden_values`."""
    most, visits = visits_of(hidden, batch, grid, values.device)
    return count_of(values.contiguous(), visits, most, batch, {**hidden_layout(hidden, grid), "LISTED": 0})


def _tile(weight: torch.Tensor) -> dict[str, int]:
    tokens, values = TILES.get(weight.dtype, TILES[torch.bfloat16])
    width = weight.shape[1]
    return {"C": width, "CHANNELS": max(16, triton.next_power_of_2(width)), "TOKENS": tokens, "VALUES": values}
