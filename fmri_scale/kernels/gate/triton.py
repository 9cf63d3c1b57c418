"""Gate and out-projection in Triton: y and z in, tokens out, their product only in registers.

Forward: a program owns TOKENS tokens and walks the inner channels INNER at a time. Backward: one kernel walks them
again for the gradients of y and z, and one, a program of which owns INNER channels and a share of the tokens, sums the
weight's; shares are then added in a fixed order. Products are in the dtype of y, everything else in float32.

Outputs wider than `WIDEST` leave too little room for tiles; they (and float16) run in torch (`cpu.py`).
"""

import torch
import triton
import triton.language as tl

from fmri_scale.kernels.clips_jit import refuse_float64
from fmri_scale.kernels.gate import cpu
from fmri_scale.kernels.jit import launch, rows_of, sigmoid

WIDEST = {torch.float32: 64, torch.bfloat16: 128}
"Channels out at most: products in float32 need registers for their operands."
TILES = {torch.float32: (16, 16), torch.bfloat16: (64, 32)}
"Tokens of a program and inner channels at a time; chosen from what compiles without spills."
SHARES = 256
"Parts into which the tokens are cut for the weight's gradient, whatever the device: sums must not depend on it."


@triton.jit
def gate_kernel(
    y_ptr,
    z_ptr,
    weight_ptr,
    past_ptr,
    out_ptr,
    rows,
    PAST: tl.constexpr,
    ROW: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """out of TOKENS rows, added to `past` with PAST; ROW is the row stride of z."""
    c = tl.arange(0, CHANNELS)
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    wide = (row < rows)[:, None] & (c < C)[None, :]
    sums = tl.zeros([TOKENS, CHANNELS], tl.float32)
    if PAST:
        sums += tl.load(past_ptr + row[:, None] * C + c[None, :], mask=wide, other=0.0).to(tl.float32)
    for first in range(0, E, INNER):
        e = first + tl.arange(0, INNER)
        y, _z, gate = _load(y_ptr, z_ptr, row, e, rows, ROW, E)
        weight = _weight(weight_ptr, e, c, E, C)
        sums = tl.dot((y * gate).to(weight.dtype), weight, sums, input_precision="ieee")
    tl.store(out_ptr + row[:, None] * C + c[None, :], sums.to(out_ptr.dtype.element_ty), mask=wide)


@triton.jit
def gate_input_kernel(
    dout_ptr,
    y_ptr,
    z_ptr,
    weight_ptr,
    dy_ptr,
    dz_ptr,
    rows,
    ROW: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """dy and dz of TOKENS rows."""
    c = tl.arange(0, CHANNELS)
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    wide = (row < rows)[:, None] & (c < C)[None, :]
    dout = tl.load(dout_ptr + row[:, None] * C + c[None, :], mask=wide, other=0.0)
    for first in range(0, E, INNER):
        e = first + tl.arange(0, INNER)
        y, z, gate = _load(y_ptr, z_ptr, row, e, rows, ROW, E)
        product = tl.dot(dout, tl.trans(_weight(weight_ptr, e, c, E, C)), input_precision="ieee")
        half = sigmoid(z)
        place = row[:, None] * E + e[None, :]
        ok = (row < rows)[:, None] & (e < E)[None, :]
        dz = product * y * half * (1.0 + z * (1.0 - half))
        tl.store(dy_ptr + place, (product * gate).to(dy_ptr.dtype.element_ty), mask=ok)
        tl.store(dz_ptr + place, dz.to(dz_ptr.dtype.element_ty), mask=ok)


@triton.jit
def gate_weight_kernel(
    dout_ptr,
    y_ptr,
    z_ptr,
    dweight_ptr,
    rows,
    ROW: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Gradient of INNER columns (axis 1) of the weight over a share of the rows (axis 0), into (shares, E, C)."""
    c = tl.arange(0, CHANNELS)
    e = tl.program_id(1) * INNER + tl.arange(0, INNER)
    dweight = tl.zeros([INNER, CHANNELS], tl.float32)
    for first in range(tl.program_id(0) * TOKENS, rows, tl.num_programs(0) * TOKENS):
        row = (first + tl.arange(0, TOKENS)).to(tl.int64)
        wide = (row < rows)[:, None] & (c < C)[None, :]
        dout = tl.load(dout_ptr + row[:, None] * C + c[None, :], mask=wide, other=0.0)
        y, _z, gate = _load(y_ptr, z_ptr, row, e, rows, ROW, E)
        dweight = tl.dot(tl.trans((y * gate).to(dout.dtype)), dout, dweight, input_precision="ieee")
    place = tl.program_id(0) * E * C + e[:, None] * C + c[None, :]
    tl.store(dweight_ptr + place, dweight, mask=(e < E)[:, None] & (c < C)[None, :])


@triton.jit
def _load(y_ptr, z_ptr, row, e, rows, ROW: tl.constexpr, E: tl.constexpr):
    """y, z and silu(z) of tokens, [tokens, INNER] in float32; 0 where there is none."""
    ok = (row < rows)[:, None] & (e < E)[None, :]
    y = tl.load(y_ptr + row[:, None] * E + e[None, :], mask=ok, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + row[:, None] * ROW + e[None, :], mask=ok, other=0.0).to(tl.float32)
    return y, z, z * sigmoid(z)


@triton.jit
def _weight(weight_ptr, e, c, E: tl.constexpr, C: tl.constexpr):
    """Columns e of the weight, [INNER, CHANNELS]."""
    return tl.load(weight_ptr + c[None, :] * E + e[:, None], mask=(e < E)[:, None] & (c < C)[None, :], other=0.0)


def forward(y, z, weight, past=None) -> torch.Tensor:
    """Return tokens (..., C), contiguous; arguments as `fmri_scale.kernels.gate.gate_linear`."""
    refuse_float64(y)
    if _by_torch(y, weight):
        return cpu.forward(y, z, weight, past)
    y, z, weight = y.contiguous(), _rows(z), weight.contiguous()
    out = torch.empty(*y.shape[:-1], weight.shape[0], dtype=y.dtype, device=y.device)
    rows, constants = y.numel() // y.shape[-1], _constants(y, z, weight)
    grid = (triton.cdiv(rows, constants["TOKENS"]),)
    added = y if past is None else past.contiguous()
    inputs = (y, z, weight, added, out, rows)
    launch(gate_kernel, grid, y.device, *inputs, PAST=past is not None, **constants, num_warps=4)
    return out


def backward(d_out, y, z, weight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of y, z and weight, in the dtype of each."""
    refuse_float64(y)
    if _by_torch(y, weight):
        return cpu.backward(d_out, y, z, weight)
    d_out, y, z, weight = d_out.contiguous(), y.contiguous(), _rows(z), weight.contiguous()
    rows, constants = y.numel() // y.shape[-1], _constants(y, z, weight)
    programs = triton.cdiv(rows, constants["TOKENS"])
    dy, dz = torch.empty_like(y), torch.empty(y.shape, dtype=y.dtype, device=y.device)
    launch(gate_input_kernel, (programs,), y.device, d_out, y, z, weight, dy, dz, rows, **constants, num_warps=4)
    shares, (width, inner) = min(SHARES, programs), weight.shape
    d_weight = torch.empty(shares, inner, width, dtype=torch.float32, device=y.device)
    grid = (shares, triton.cdiv(inner, constants["INNER"]))
    launch(gate_weight_kernel, grid, y.device, d_out, y, z, d_weight, rows, **constants, num_warps=4)
    return dy, dz, d_weight.sum(0).t().to(weight.dtype).contiguous()


def _rows(z: torch.Tensor) -> torch.Tensor:
    """z as evenly spaced rows: a half of a wider tensor stays where it is."""
    return rows_of(z.flatten(0, -3) if z.ndim > 3 else z) if z.ndim >= 3 else z.contiguous()


def _constants(y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor) -> dict:
    tokens, inner = TILES[y.dtype]
    width, channels = weight.shape[0], max(16, triton.next_power_of_2(weight.shape[0]))
    tile = {"CHANNELS": channels, "INNER": inner, "TOKENS": tokens}
    return {"ROW": z.stride(-2), "E": y.shape[-1], "C": width, **tile}


def _by_torch(y: torch.Tensor, weight: torch.Tensor) -> bool:
    return weight.shape[0] > WIDEST.get(y.dtype, 0)
