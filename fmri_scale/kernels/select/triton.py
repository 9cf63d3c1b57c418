"""Selection of a mixer in Triton: step sizes of every token in one pass, and back again in two.

Forward: B, C and dt before its projection are one product, which torch makes; the kernel maps dt to all channels and
applies softplus. Backward: one kernel for the step sizes and dt_proj, one that completes the gradient of what was
selected from, with that of x_proj. A program owns a share of the tokens and PIECE channels, and keeps a projection's
gradient in registers; shares are then summed in a fixed order. Its channels are cut into MAIN and TAIL, powers of two
(72 = 64 + 8 in 16).

Products are in the dtype of x, everything else in float32. More than `WIDEST` channels, widths that do not come
apart into equal pieces, and float16 run in torch (`cpu.py`).

Legend: E channels e, R rank r of dt, S states n; M = R + 2 S columns of the selection: dt before its projection (low),
B, C. LOW are R columns up to a multiple of 8, so that rows are aligned.
"""

import math

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from fmri_scale.kernels.clips_jit import refuse_float64
from fmri_scale.kernels.jit import cut, launch, sigmoid, softplus
from fmri_scale.kernels.norm_jit import places
from fmri_scale.kernels.select import cpu

WIDEST = {torch.float32: 24, torch.bfloat16: 512}
"Channels at most: products in float32 need registers for their operands, and of more, dt's rank does (over 16)."
PIECES = {"step": 80, "map": 24}
"Channels at most of a program of the backward kernels: what their gradients leave registers for."
MANY_LAYERS = 3
"Programs along the channels of the first backward kernel from which on the second takes 16 channels: it adds them up."
TILES = {torch.float32: (16, 16), torch.bfloat16: (64, 16)}
"Tokens of a program and, forward, channels at a time; chosen from what compiles without spills."
SHARES = 256
"Parts into which the tokens are cut for the projections' gradients, whatever the device: sums must not depend on it."


@triton.jit
def select_dt_kernel(
    selection_ptr,
    dt_proj_ptr,
    dt_bias_ptr,
    dt_ptr,
    rows,
    E: tl.constexpr,
    R: tl.constexpr,
    M: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Step sizes of TOKENS rows."""
    base = tl.program_id(0).to(tl.int64) * TOKENS
    left = rows - base
    row = tl.arange(0, TOKENS)
    r = tl.arange(0, RANK)
    low = _low(selection_ptr + base * M, row, r, left, R, M)
    for start in range(0, E, INNER):
        e = start + tl.arange(0, INNER)
        raw = tl.dot(low, _columns(dt_proj_ptr, e, r, E, R), input_precision="ieee")
        raw += tl.load(dt_bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
        place, ok = places(row, e, left, E)
        tl.store(dt_ptr + base * E + place, softplus(raw).to(dt_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _low(selection_ptr, row, r, left, R: tl.constexpr, M: tl.constexpr):
    """dt before its projection, [tokens, RANK]; 0 where there is none."""
    return tl.load(
        selection_ptr + row[:, None] * M + r[None, :], mask=(row < left)[:, None] & (r < R)[None, :], other=0.0
    )


@triton.jit
def _columns(weight_ptr, i, k, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Rows i of a weight (COUNT, WIDTH) as columns, [k, i]."""
    inside = (k < WIDTH)[:, None] & (i < COUNT)[None, :]
    return tl.load(weight_ptr + i[None, :] * WIDTH + k[:, None], mask=inside, other=0.0)


@triton.jit
def select_step_kernel(
    ddt_ptr,
    selection_ptr,
    dt_proj_ptr,
    dt_bias_ptr,
    dlow_ptr,
    ddt_proj_ptr,
    ddt_bias_ptr,
    rows,
    E: tl.constexpr,
    R: tl.constexpr,
    M: tl.constexpr,
    LOW: tl.constexpr,
    RANK: tl.constexpr,
    PIECE: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """What PIECE channels (axis 0) give to dlow of a share of the rows (axis 1), (pieces, rows, LOW), and their share
    of the gradients of dt_proj, (shares, R, E), and its bias."""
    first = tl.program_id(0) * PIECE  # neighbours share what all channels need in the second-level cache
    until = first + PIECE
    r = tl.arange(0, RANK)
    em = first + tl.arange(0, MAIN)
    dprojm = tl.zeros([RANK, MAIN], tl.float32)
    dbiasm = tl.zeros([MAIN], tl.float32)
    if TAIL > 0:
        et = first + MAIN + tl.arange(0, TAIL)
        dprojt = tl.zeros([RANK, TAIL], tl.float32)
        dbiast = tl.zeros([TAIL], tl.float32)
    weights = (dt_proj_ptr, dt_bias_ptr)
    for start in tl.range(tl.program_id(1) * TOKENS, rows, tl.num_programs(1) * TOKENS, disable_licm=True):
        base = tl.cast(start, tl.int64)  # what follows counts from it, in 32 bits
        row = tl.arange(0, TOKENS)
        left = rows - start
        low = _low(selection_ptr + base * M, row, r, left, R, M)
        dlow = tl.zeros([TOKENS, RANK], tl.float32)
        ddt = ddt_ptr + base * E
        dlow, dprojm, dbiasm = _steps(ddt, weights, row, em, r, low, dlow, dprojm, dbiasm, left, until, E, R)
        if TAIL > 0:
            dlow, dprojt, dbiast = _steps(ddt, weights, row, et, r, low, dlow, dprojt, dbiast, left, until, E, R)
        place, ok = places(row, r, left, LOW)
        layer = (tl.program_id(0).to(tl.int64) * rows + base) * LOW
        tl.store(dlow_ptr + layer + place, dlow, mask=ok)
    share = tl.program_id(1)
    _keep(ddt_proj_ptr + share * R * E, dprojm, r, em, R, until, E)
    tl.store(ddt_bias_ptr + share * E + em, dbiasm, mask=em < until)
    if TAIL > 0:
        _keep(ddt_proj_ptr + share * R * E, dprojt, r, et, R, until, E)
        tl.store(ddt_bias_ptr + share * E + et, dbiast, mask=et < until)


@triton.jit
def _steps(ddt_ptr, weights, row, e, r, low, dlow, dproj, dbias, left, until, E: tl.constexpr, R: tl.constexpr):
    """Add what the step sizes of channels e give to the gradients of dt before its projection, and of dt_proj."""
    inside = (r < R)[:, None] & (e < until)[None, :]
    weight = tl.load(weights[0] + e[None, :] * R + r[:, None], mask=inside, other=0.0)
    bias = tl.load(weights[1] + e, mask=e < until, other=0.0).to(tl.float32)
    ok = (row < left)[:, None] & (e < until)[None, :]
    draw = tl.load(ddt_ptr + row[:, None] * E + e[None, :], mask=ok, other=0.0).to(tl.float32)
    draw = draw * sigmoid(tl.dot(low, weight, input_precision="ieee") + bias[None, :])
    steps = draw.to(low.dtype)
    dlow = tl.dot(steps, tl.trans(weight), dlow, input_precision="ieee")
    return dlow, tl.dot(tl.trans(low), steps, dproj, input_precision="ieee"), dbias + tl.sum(draw, 0)


@triton.jit
def select_map_kernel(
    dmixed_ptr,
    past_ptr,
    dlow_ptr,
    db_ptr,
    dc_ptr,
    mixed_ptr,
    x_proj_ptr,
    out_ptr,
    dx_proj_ptr,
    rows,
    E: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    LOW: tl.constexpr,
    RANK: tl.constexpr,
    STATES: tl.constexpr,
    LAYERS: tl.constexpr,
    PIECE: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
    PAST: tl.constexpr,
):
    """The whole gradient of mixed in PIECE channels (axis 0) of a share of the rows (axis 1), and their share of that
    of x_proj, (shares, R + 2 S, E)."""
    first = tl.program_id(0) * PIECE  # neighbours share what all channels need in the second-level cache
    until = first + PIECE
    r = tl.arange(0, RANK)
    n = tl.arange(0, STATES)
    em = first + tl.arange(0, MAIN)
    dlowm = tl.zeros([RANK, MAIN], tl.float32)
    dbm = tl.zeros([STATES, MAIN], tl.float32)
    dcm = tl.zeros([STATES, MAIN], tl.float32)
    if TAIL > 0:
        et = first + MAIN + tl.arange(0, TAIL)
        dlowt = tl.zeros([RANK, TAIL], tl.float32)
        dbt = tl.zeros([STATES, TAIL], tl.float32)
        dct = tl.zeros([STATES, TAIL], tl.float32)
    for start in tl.range(tl.program_id(1) * TOKENS, rows, tl.num_programs(1) * TOKENS, disable_licm=True):
        base = tl.cast(start, tl.int64)  # what follows counts from it, in 32 bits
        row = tl.arange(0, TOKENS)
        left = rows - start
        place, ok = places(row, r, left, LOW)
        dlow = tl.zeros([TOKENS, RANK], tl.float32)
        for piece in tl.static_range(LAYERS):
            layer = (base + tl.cast(rows, tl.int64) * piece) * LOW
            dlow += tl.load(dlow_ptr + layer + place, mask=ok, other=0.0)
        if PAST:
            dlow += _low(past_ptr + base * R, row, r, left, R, R).to(tl.float32)
        place, ok = places(row, n, left, S)
        db = tl.load(db_ptr + base * S + place, mask=ok, other=0.0)
        dc = tl.load(dc_ptr + base * S + place, mask=ok, other=0.0)
        parts = (dlow.to(db.dtype), db, dc)
        arrays = (dmixed_ptr + base * E, mixed_ptr + base * E, out_ptr + base * E, x_proj_ptr)
        dlowm, dbm, dcm = _maps(arrays, row, em, r, n, parts, dlowm, dbm, dcm, left, until, E, R, S)
        if TAIL > 0:
            dlowt, dbt, dct = _maps(arrays, row, et, r, n, parts, dlowt, dbt, dct, left, until, E, R, S)
    dx_proj_ptr += tl.program_id(1) * (R + 2 * S) * E
    _keep(dx_proj_ptr, dlowm, r, em, R, until, E)
    _keep(dx_proj_ptr + R * E, dbm, n, em, S, until, E)
    _keep(dx_proj_ptr + (R + S) * E, dcm, n, em, S, until, E)
    if TAIL > 0:
        _keep(dx_proj_ptr, dlowt, r, et, R, until, E)
        _keep(dx_proj_ptr + R * E, dbt, n, et, S, until, E)
        _keep(dx_proj_ptr + (R + S) * E, dct, n, et, S, until, E)


@triton.jit
def _maps(
    arrays,
    row,
    e,
    r,
    n,
    parts,
    dlow_sum,
    db_sum,
    dc_sum,
    left,
    until,
    E: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
):
    """Complete the gradient of mixed in channels e; add to that of x_proj."""
    place = row[:, None] * E + e[None, :]
    ok = (row < left)[:, None] & (e < until)[None, :]
    dmixed = tl.load(arrays[0] + place, mask=ok, other=0.0).to(tl.float32)
    dmixed = tl.dot(parts[0], _rows(arrays[3], r, e, R, until, E), dmixed, input_precision="ieee")
    dmixed = tl.dot(parts[1], _rows(arrays[3] + R * E, n, e, S, until, E), dmixed, input_precision="ieee")
    dmixed = tl.dot(parts[2], _rows(arrays[3] + (R + S) * E, n, e, S, until, E), dmixed, input_precision="ieee")
    tl.store(arrays[2] + place, dmixed.to(arrays[2].dtype.element_ty), mask=ok)
    mixed = tl.load(arrays[1] + place, mask=ok, other=0.0)
    dlow_sum = tl.dot(tl.trans(parts[0]), mixed, dlow_sum, input_precision="ieee")
    db_sum = tl.dot(tl.trans(parts[1]), mixed, db_sum, input_precision="ieee")
    return dlow_sum, db_sum, tl.dot(tl.trans(parts[2]), mixed, dc_sum, input_precision="ieee")


@triton.jit
def _rows(weight_ptr, i, e, COUNT: tl.constexpr, until, E: tl.constexpr):
    """Rows i of a weight (COUNT, E), channels e."""
    inside = (i < COUNT)[:, None] & (e < until)[None, :]
    return tl.load(weight_ptr + i[:, None] * E + e[None, :], mask=inside, other=0.0)


@triton.jit
def _keep(ptr, values, i, e, COUNT: tl.constexpr, until, E: tl.constexpr):
    tl.store(ptr + i[:, None] * E + e[None, :], values, mask=(i < COUNT)[:, None] & (e < until)[None, :])


def forward(mixed, x_proj, dt_proj, dt_bias) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dt (..., E) and the selection (..., M); arguments as `fmri_scale.kernels.select.select`."""
    selection = F.linear(mixed, x_proj)
    return steps(selection, dt_proj, dt_bias), selection


def steps(selection, dt_proj, dt_bias) -> torch.Tensor:
    """Return dt (..., E) of a selection."""
    refuse_float64(selection)
    if _by_torch(selection, dt_proj):
        return cpu.steps(selection, dt_proj, dt_bias)
    selection, (width, rank) = selection.contiguous(), dt_proj.shape
    dt = torch.empty(*selection.shape[:-1], width, dtype=selection.dtype, device=selection.device)
    tokens, inner = TILES[selection.dtype]
    rows = math.prod(selection.shape[:-1])
    launch(
        select_dt_kernel,
        (triton.cdiv(rows, tokens),),
        selection.device,
        *(selection, dt_proj.contiguous(), dt_bias.contiguous(), dt, rows),
        **{"E": width, "R": rank, "M": selection.shape[-1], "RANK": 16},
        **{"INNER": inner, "TOKENS": tokens, "num_warps": 4},
    )
    return dt


def backward(d_mixed, d_dt, past, dB, dC, mixed, selection, x_proj, dt_proj, dt_bias) -> tuple[torch.Tensor, ...]:
    """Return the whole gradient of mixed, and those of x_proj, dt_proj and its bias."""
    refuse_float64(mixed)
    if _by_torch(mixed, dt_proj):
        return cpu.backward(d_mixed, d_dt, past, dB, dC, mixed, selection, x_proj, dt_proj, dt_bias)
    d_mixed, d_dt, dB, dC, mixed, selection = (v.contiguous() for v in (d_mixed, d_dt, dB, dC, mixed, selection))
    x_proj, dt_proj, dt_bias = (v.contiguous() for v in (x_proj, dt_proj, dt_bias))
    (width, rank), maps, rows = dt_proj.shape, x_proj.shape[0], math.prod(mixed.shape[:-1])
    low, tokens, steps_, maps_ = -(-rank // 8) * 8, TILES[mixed.dtype][0], *_pieces(width)
    layers, shares = width // steps_, min(SHARES, triton.cdiv(rows, tokens))

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=mixed.device)

    sizes = {"E": width, "R": rank, "LOW": low, "RANK": 16}
    sizes |= {"TOKENS": tokens, "num_warps": 4, "num_stages": 1}
    d_low, d_dt_proj, d_dt_bias = empty(layers, rows, low), empty(shares, rank, width), empty(shares, width)
    inputs = (d_dt, selection, dt_proj, dt_bias, d_low, d_dt_proj, d_dt_bias, rows)
    tile = {"M": maps, "PIECE": steps_, **cut(steps_)}
    launch(select_step_kernel, (layers, shares), mixed.device, *inputs, **sizes, **tile)
    out, d_x_proj, states = torch.empty_like(mixed), empty(shares, maps, width), (maps - rank) // 2
    before = d_low if past is None else past.contiguous()
    arrays = (d_mixed, before, d_low, dB, dC, mixed, x_proj, out, d_x_proj, rows)
    tile = {"S": states, "STATES": max(16, triton.next_power_of_2(states)), "LAYERS": layers, "PAST": past is not None}
    tile |= {"PIECE": maps_, **cut(maps_)}
    launch(select_map_kernel, (width // maps_, shares), mixed.device, *arrays, **sizes, **tile)
    d_x_proj, d_dt_proj, d_dt_bias = (v.sum(0).to(mixed.dtype) for v in (d_x_proj, d_dt_proj, d_dt_bias))
    return out, d_x_proj, d_dt_proj.t().contiguous(), d_dt_bias


def _pieces(width: int) -> tuple[int, int]:
    """Channels of a program of both backward kernels: the largest part of the width that is small enough."""
    step, maps = (max(n for n in range(1, most + 1) if width % n == 0) for most in PIECES.values())
    return step, 16 if width // step >= MANY_LAYERS and width % 16 == 0 else maps


def _by_torch(x: torch.Tensor, dt_proj: torch.Tensor) -> bool:
    width, rank = dt_proj.shape
    return width > WIDEST.get(x.dtype, 0) or rank > 16 or min(_pieces(width)) < min(width, 16)
