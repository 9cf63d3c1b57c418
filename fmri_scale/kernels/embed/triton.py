"""The embedding in Triton: codes gathered by index, made values in registers, multiplied on the tensor cores.

Forward: a program owns TOKENS consecutive tokens and all channels; a program whose tokens are all hidden reads no
codes. Backward makes the same values again: one kernel sums the weight's and the bias's gradient over the tokens of a
share (then the shares are summed in a fixed order), one the mask tokens'. Positions and frames are plain sums of dy.
Of LISTED patches (0: all have tokens) the rows of tokens are those of the list, everything else is the grid's.

The values of a voxel in bfloat16 are rounded once, as a volume in bfloat16 would be; sums are in float32.
"""

import math

import torch
import triton
import triton.language as tl

from fmri_scale.kernels.clips import CodedClips, Hidden, places_in_list
from fmri_scale.kernels.clips_jit import (
    NONE,
    clip_arguments,
    hidden_arguments,
    is_hidden,
    layout,
    load_affine,
    load_values,
    place_of,
    refuse_float64,
    row_of,
    token_of,
)
from fmri_scale.kernels.jit import launch
from fmri_scale.kernels.windows import Axes

TILES = {torch.float32: (16, 16), torch.bfloat16: (32, 32)}
"""Tokens of a program, and values of a patch at a time: in float32 products are made by the ordinary pipes, and need
registers for their operands. Chosen from what compiles without spills."""
SHARES = 128
"Parts into which a batch's tokens are cut for the gradients, whatever the device: sums must not depend on it."


@triton.jit
def embed_kernel(
    out_ptr,
    weight_ptr,
    bias_ptr,
    mask_token_ptr,
    position_ptr,
    time_ptr,
    codes_ptr,
    scale_ptr,
    gain_ptr,
    shift_ptr,
    outside_ptr,
    index_ptr,
    num_voxels,
    hidden_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    count,
    list_ptr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    VALUES: tl.constexpr,
    SLOTS: tl.constexpr,
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
    """Tokens of one clip (program axis 1): TOKENS of them (axis 0), all C channels; weight is (C, P)."""
    N: tl.constexpr = (LISTED if LISTED > 0 else GRID[0] * GRID[1] * GRID[2]) * GRID[3]
    P: tl.constexpr = PATCH[0] * PATCH[1] * PATCH[2]
    clip = tl.program_id(1)
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    ok = row < N
    row = tl.where(ok, row, 0)
    token = token_of(row, list_ptr, GRID, LISTED)
    hidden = is_hidden(
        token, ok, clip, hidden_ptr, epoch_ptr, clip_ptr, seed, count, GRID, UNIT, MODE, UNITS, LEFT, RIGHT, ROUNDS
    )
    seen = ok & (hidden == 0)
    codes_ptr += clip.to(tl.int64) * GRID[3] * num_voxels
    scale_ptr += clip.to(tl.int64) * 2 * num_voxels
    affine = load_affine(gain_ptr, shift_ptr, outside_ptr, clip)
    frame = token % GRID[3]
    position = token // GRID[3]
    c = tl.arange(0, CHANNELS)
    sums = tl.zeros([TOKENS, CHANNELS], tl.float32)
    stop = tl.where(tl.max(seen.to(tl.int32), 0) > 0, P, 0)
    for first in range(0, stop, VALUES):
        v = first + tl.arange(0, VALUES)
        x, _ = load_values(
            codes_ptr, scale_ptr, index_ptr, affine, position, frame, seen, v, num_voxels, GRID, IMAGE, PATCH
        )
        w = tl.load(weight_ptr + c[None, :] * P + v[:, None], mask=(v < P)[:, None] & (c < C)[None, :], other=0.0)
        sums = tl.dot(x.to(w.dtype), w, sums, input_precision="ieee")
    slot = _slot(token, GRID, SLOTS)
    wide = ok[:, None] & (c < C)[None, :]
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    stand_in = tl.load(mask_token_ptr + slot[:, None] * C + c[None, :], mask=wide & hidden[:, None], other=0.0)
    value = tl.where(hidden[:, None], stand_in.to(tl.float32), sums + bias[None, :])
    value += tl.load(position_ptr + position[:, None] * C + c[None, :], mask=wide, other=0.0).to(tl.float32)
    value += tl.load(time_ptr + frame[:, None] * C + c[None, :], mask=wide, other=0.0).to(tl.float32)
    out_ptr += clip.to(tl.int64) * N * C
    tl.store(out_ptr + row[:, None] * C + c[None, :], value.to(out_ptr.dtype.element_ty), mask=wide)


@triton.jit
def embed_weight_kernel(
    dy_ptr,
    dweight_ptr,
    dbias_ptr,
    codes_ptr,
    scale_ptr,
    gain_ptr,
    shift_ptr,
    outside_ptr,
    index_ptr,
    num_voxels,
    hidden_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    count,
    list_ptr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    VALUES: tl.constexpr,
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
    """Gradient of VALUES columns (axis 1) of the weight, summed over a share (axis 0) of a clip's seen tokens (axis
    2), into (clips, shares, P, C); the programs of the first columns also sum the bias's, (clips, shares, C)."""
    N: tl.constexpr = (LISTED if LISTED > 0 else GRID[0] * GRID[1] * GRID[2]) * GRID[3]
    P: tl.constexpr = PATCH[0] * PATCH[1] * PATCH[2]
    clip = tl.program_id(2)
    shares = tl.num_programs(0)
    codes_ptr += clip.to(tl.int64) * GRID[3] * num_voxels
    scale_ptr += clip.to(tl.int64) * 2 * num_voxels
    dy_ptr += clip.to(tl.int64) * N * C
    affine = load_affine(gain_ptr, shift_ptr, outside_ptr, clip)
    c = tl.arange(0, CHANNELS)
    v = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    dweight = tl.zeros([VALUES, CHANNELS], tl.float32)
    dbias = tl.zeros([CHANNELS], tl.float32)
    for first in range(tl.program_id(0) * TOKENS, N, shares * TOKENS):
        row = first + tl.arange(0, TOKENS)
        ok = row < N
        row = tl.where(ok, row, 0)
        token = token_of(row, list_ptr, GRID, LISTED)
        hidden = is_hidden(
            token, ok, clip, hidden_ptr, epoch_ptr, clip_ptr, seed, count, GRID, UNIT, MODE, UNITS, LEFT, RIGHT, ROUNDS
        )
        seen = ok & (hidden == 0)
        if tl.max(seen.to(tl.int32), 0) > 0:
            frame = token % GRID[3]
            position = token // GRID[3]
            x, _ = load_values(
                codes_ptr, scale_ptr, index_ptr, affine, position, frame, seen, v, num_voxels, GRID, IMAGE, PATCH
            )
            wide = seen[:, None] & (c < C)[None, :]
            dy = tl.load(dy_ptr + row[:, None] * C + c[None, :], mask=wide, other=0.0)
            dweight = tl.dot(tl.trans(x.to(dy.dtype)), dy, dweight, input_precision="ieee")
            dbias += tl.sum(dy.to(tl.float32), 0)
    share = clip.to(tl.int64) * shares + tl.program_id(0)
    inside = (v < P)[:, None] & (c < C)[None, :]
    tl.store(dweight_ptr + share * (P * C) + v[:, None] * C + c[None, :], dweight, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(dbias_ptr + share * C + c, dbias, mask=c < C)


@triton.jit
def embed_mask_token_kernel(
    dy_ptr,
    dtoken_ptr,
    hidden_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    count,
    list_ptr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    GRID: tl.constexpr,
    UNIT: tl.constexpr,
    MODE: tl.constexpr,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Gradient of the mask token of a slot (axis 0), summed over a share (axis 1) of a clip's windows (axis 2), into
    (clips, shares, S, C). Here `list_ptr` is where each position stands in the list."""
    N: tl.constexpr = (LISTED if LISTED > 0 else GRID[0] * GRID[1] * GRID[2]) * GRID[3]
    H: tl.constexpr = (GRID[1] + SLOTS[1] - 1) // SLOTS[1]
    W: tl.constexpr = (GRID[2] + SLOTS[2] - 1) // SLOTS[2]
    T: tl.constexpr = (GRID[3] + SLOTS[3] - 1) // SLOTS[3]
    WINDOWS: tl.constexpr = (GRID[0] + SLOTS[0] - 1) // SLOTS[0] * H * W * T
    slot = tl.program_id(0)
    c = tl.arange(0, CHANNELS)
    sums = tl.zeros([CHANNELS], tl.float32)
    clip = tl.program_id(2)
    for first in range(tl.program_id(1) * TOKENS, WINDOWS, tl.num_programs(1) * TOKENS):
        window = first + tl.arange(0, TOKENS)
        t = window % T * SLOTS[3] + slot % SLOTS[3]
        w = window // T % W * SLOTS[2] + slot // SLOTS[3] % SLOTS[2]
        h = window // (T * W) % H * SLOTS[1] + slot // (SLOTS[3] * SLOTS[2]) % SLOTS[1]
        d = window // (T * W * H) * SLOTS[0] + slot // (SLOTS[3] * SLOTS[2] * SLOTS[1])
        ok = (d < GRID[0]) & (h < GRID[1]) & (w < GRID[2]) & (t < GRID[3])
        token = tl.where(ok, ((d * GRID[1] + h) * GRID[2] + w) * GRID[3] + t, 0)
        row, ok = row_of(token, ok, list_ptr, GRID, LISTED)
        hidden = is_hidden(
            token,
            ok,
            clip,
            hidden_ptr,
            epoch_ptr,
            clip_ptr,
            seed,
            count,
            GRID,
            UNIT,
            MODE,
            UNITS,
            LEFT,
            RIGHT,
            ROUNDS,
        )
        rows = dy_ptr + clip.to(tl.int64) * N * C + row[:, None] * C
        dy = tl.load(rows + c[None, :], mask=hidden[:, None] & (c < C)[None, :], other=0.0)
        sums += tl.sum(dy.to(tl.float32), 0)
    share = (clip.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + slot
    tl.store(dtoken_ptr + share * C + c, sums, mask=c < C)


@triton.jit
def _slot(token, GRID: tl.constexpr, SLOTS: tl.constexpr):
    """Slot of tokens in their windows."""
    d, h, w, t = place_of(token, GRID)
    slot = (d % SLOTS[0] * SLOTS[1] + h % SLOTS[1]) * SLOTS[2] + w % SLOTS[2]
    return slot * SLOTS[3] + t % SLOTS[3]


def forward(
    clips: CodedClips, weight, bias, mask_tokens, position, time, hidden: Hidden, slots: Axes, patches=None
) -> torch.Tensor:
    """Return tokens (B, N, C), contiguous, in the weight's dtype; arguments as `fmri_scale.kernels.embed.embed`."""
    refuse_float64(weight)
    batch, width, tokens = clips.codes.shape[0], weight.shape[0], _num_tokens(clips, patches)
    out = torch.empty(batch, tokens, width, dtype=weight.dtype, device=clips.codes.device)
    parameters = (v.contiguous() for v in (weight, bias, mask_tokens, position, time))
    codes = clip_arguments(clips)
    constants = {**_tile(weight), "SLOTS": slots, **layout(clips, hidden), **_listed(patches)}
    grid = (triton.cdiv(tokens, constants["TOKENS"]), batch)
    draw = (*hidden_arguments(hidden, clips.codes), codes[0] if patches is None else patches.contiguous())
    launch(embed_kernel, grid, out.device, out, *parameters, *codes, *draw, **constants, num_warps=4)
    return out


def backward(
    dy, clips: CodedClips, weight, bias, mask_tokens, position, time, hidden: Hidden, slots: Axes, patches=None
):
    """Return the gradients of weight, bias, mask tokens, position and time, in the dtype of each."""
    refuse_float64(weight)
    batch, frames, width = dy.shape[0], clips.grid[3], weight.shape[0]
    tokens, values = _num_tokens(clips, patches), weight.shape[1]
    constants = {**_tile(weight), **layout(clips, hidden), **_listed(patches)}
    draw = hidden_arguments(hidden, clips.codes)
    shares = max(1, min(SHARES // batch, triton.cdiv(tokens, constants["TOKENS"])))
    d_weight = torch.empty(batch, shares, values, width, dtype=torch.float32, device=dy.device)
    d_bias = torch.empty(batch, shares, width, dtype=torch.float32, device=dy.device)
    grid = (shares, triton.cdiv(values, constants["VALUES"]), batch)
    codes = clip_arguments(clips)
    launch(
        embed_weight_kernel,
        grid,
        dy.device,
        dy,
        d_weight,
        d_bias,
        *codes,
        *draw,
        codes[0] if patches is None else patches.contiguous(),
        **constants,
        num_warps=4,
    )
    if constants["MODE"] == NONE.value:
        d_token = torch.zeros_like(mask_tokens, dtype=torch.float32)
    else:
        places = codes[0] if patches is None else places_in_list(patches, len(position))
        d_token = _mask_token_gradient(dy, mask_tokens, (*draw, places), slots, clips, constants)
    rows = dy.view(batch, -1, frames, width)
    d_position, d_time = rows.sum((0, 2), dtype=torch.float32), rows.sum((0, 1), dtype=torch.float32)
    if patches is not None:
        d_position = d_position.new_zeros(position.shape).index_copy_(0, patches.long(), d_position)
    grads = (d_weight.sum((0, 1)).t().contiguous(), d_bias.sum((0, 1)), d_token, d_position, d_time)
    like = (weight, bias, mask_tokens, position, time)
    return tuple(g.to(p.dtype) for g, p in zip(grads, like, strict=True))


def _listed(patches: torch.Tensor | None) -> dict[str, int]:
    return {"LISTED": 0 if patches is None else len(patches)}


def _num_tokens(clips: CodedClips, patches: torch.Tensor | None) -> int:
    return math.prod(clips.grid) if patches is None else len(patches) * clips.grid[3]


def _mask_token_gradient(dy, mask_tokens, draw, slots: Axes, clips: CodedClips, constants) -> torch.Tensor:
    windows = math.prod(-(-n // size) for n, size in zip(clips.grid, slots, strict=True))
    batch = dy.shape[0]
    shares = max(1, min(SHARES // (math.prod(slots) * batch), triton.cdiv(windows, constants["TOKENS"])))
    partial = torch.empty(batch, shares, *mask_tokens.shape, dtype=torch.float32, device=dy.device)
    constants = {k: v for k, v in constants.items() if k not in ("IMAGE", "PATCH", "VALUES")}
    grid = (math.prod(slots), shares, batch)
    launch(embed_mask_token_kernel, grid, dy.device, dy, partial, *draw, SLOTS=slots, **constants, num_warps=4)
    return partial.sum((0, 1))


def _tile(weight: torch.Tensor) -> dict[str, int]:
    tokens, values = TILES.get(weight.dtype, TILES[torch.bfloat16])
    width = weight.shape[0]
    return {"C": width, "CHANNELS": max(16, triton.next_power_of_2(width)), "TOKENS": tokens, "VALUES": values}
