"""Norm, MLP and residual in Triton: tokens in, tokens out, the hidden layer only in registers.

Forward: a program owns TOKENS tokens and walks the hidden values HIDDEN at a time. Backward makes them again twice: one
kernel for the gradient of the tokens and of the norm, one for those of the maps, a program of which owns HIDDEN hidden
values and a share of the tokens. Shares are summed in a fixed order, so results repeat bit for bit.

Products are in the dtype of x, sums and the norm in float32. GELU is exact to float32: erf by Abramowitz and Stegun
1964, 7.1.26 (error below 1.5e-7), whose exponential is the one that the derivative needs.

Tokens wider than `WIDEST` leave too little room for tiles; they (and float16) run in torch (`cpu.py`), whose large
products are near their floor there anyway.
"""

import torch
import triton
import triton.language as tl

from fmri_scale.kernels import tuning
from fmri_scale.kernels.clips_jit import refuse_float64
from fmri_scale.kernels.jit import LOG2_E, launch
from fmri_scale.kernels.mlp import cpu
from fmri_scale.kernels.norm_jit import norm_gradient, normalise, places

WIDEST = {torch.float32: 64, torch.bfloat16: 128}
"Channels at most: products in float32 need registers for their operands."
NARROW = 64
"Channels up to which the table says how the maps' gradients are cut; wider ones all take `WIDE`."
TILES = {torch.float32: (16, 16), torch.bfloat16: (64, 32)}
WIDE = {torch.float32: (16, 16), torch.bfloat16: (32, 32)}
"Tokens of a program and hidden values at a time; chosen from what compiles without spills."
SHARES = 256
"Parts into which the tokens are cut for the gradients of the maps, whatever the device: sums must not depend on it."


@triton.jit
def mlp_kernel(
    x_ptr,
    gain_ptr,
    shift_ptr,
    up_ptr,
    up_bias_ptr,
    down_ptr,
    down_bias_ptr,
    y_ptr,
    rows,
    EPS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """y of TOKENS rows."""
    c = tl.arange(0, CHANNELS)
    place, ok = places(tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS), c, rows, C)
    x = tl.load(x_ptr + place, mask=ok, other=0.0)
    u, _plain, _rstd = normalise(x, gain_ptr, shift_ptr, c, EPS, C)
    sums = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for first in range(0, H, HIDDEN):
        h = first + tl.arange(0, HIDDEN)
        value, down = _hidden(u, up_ptr, up_bias_ptr, down_ptr, h, c, C, H)
        gelu, _slope = _gelu(value)
        sums = tl.dot(gelu.to(x.dtype), tl.trans(down), sums, input_precision="ieee")
    y = sums + tl.load(down_bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        y += x.to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def mlp_input_kernel(
    dy_ptr,
    x_ptr,
    gain_ptr,
    shift_ptr,
    up_ptr,
    up_bias_ptr,
    down_ptr,
    dx_ptr,
    dgain_ptr,
    dshift_ptr,
    rows,
    EPS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """dx of TOKENS rows, and their share of the norm's gradients, (programs, C)."""
    c = tl.arange(0, CHANNELS)
    place, ok = places(tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS), c, rows, C)
    x = tl.load(x_ptr + place, mask=ok, other=0.0)
    dy = tl.load(dy_ptr + place, mask=ok, other=0.0)
    u, plain, rstd = normalise(x, gain_ptr, shift_ptr, c, EPS, C)
    du = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for first in range(0, H, HIDDEN):
        h = first + tl.arange(0, HIDDEN)
        value, down = _hidden(u, up_ptr, up_bias_ptr, down_ptr, h, c, C, H)
        _gelu_value, slope = _gelu(value)
        dvalue = tl.dot(dy, down, input_precision="ieee") * slope
        up = tl.load(up_ptr + h[:, None] * C + c[None, :], mask=(h < H)[:, None] & (c < C)[None, :], other=0.0)
        du = tl.dot(dvalue.to(x.dtype), up, du, input_precision="ieee")
    share = tl.program_id(0) * C + c
    tl.store(dgain_ptr + share, tl.sum(du * plain, 0), mask=c < C)
    tl.store(dshift_ptr + share, tl.sum(du, 0), mask=c < C)
    dx = norm_gradient(du, plain, rstd, gain_ptr, c, C)
    if RESIDUAL:
        dx += dy.to(tl.float32)
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=ok)


@triton.jit
def mlp_weight_kernel(
    dy_ptr,
    x_ptr,
    gain_ptr,
    shift_ptr,
    up_ptr,
    up_bias_ptr,
    down_ptr,
    dup_ptr,
    dup_bias_ptr,
    ddown_ptr,
    ddown_bias_ptr,
    rows,
    EPS: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Gradients of HIDDEN rows of `up` and columns of `down` (axis 1) over a share of the rows (axis 0), into (shares,
    H, C) each, (shares, H) and, by the programs of the first hidden values, (shares, C)."""
    c = tl.arange(0, CHANNELS)
    h = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    dup = tl.zeros([HIDDEN, CHANNELS], tl.float32)
    ddown = tl.zeros([HIDDEN, CHANNELS], tl.float32)
    dup_bias = tl.zeros([HIDDEN], tl.float32)
    ddown_bias = tl.zeros([CHANNELS], tl.float32)
    for first in range(tl.program_id(0) * TOKENS, rows, tl.num_programs(0) * TOKENS):
        place, ok = places((first + tl.arange(0, TOKENS)).to(tl.int64), c, rows, C)
        x = tl.load(x_ptr + place, mask=ok, other=0.0)
        dy = tl.load(dy_ptr + place, mask=ok, other=0.0)
        u, _plain, _rstd = normalise(x, gain_ptr, shift_ptr, c, EPS, C)
        value, down = _hidden(u, up_ptr, up_bias_ptr, down_ptr, h, c, C, H)
        gelu, slope = _gelu(value)
        dvalue = tl.dot(dy, down, input_precision="ieee") * slope
        dup = tl.dot(tl.trans(dvalue.to(x.dtype)), u, dup, input_precision="ieee")
        ddown = tl.dot(tl.trans(gelu.to(x.dtype)), dy, ddown, input_precision="ieee")
        dup_bias += tl.sum(dvalue, 0)
        ddown_bias += tl.sum(dy.to(tl.float32), 0)
    share = tl.program_id(0)
    inside = (h < H)[:, None] & (c < C)[None, :]
    block = share * H * C + h[:, None] * C + c[None, :]
    tl.store(dup_ptr + block, dup, mask=inside)
    tl.store(ddown_ptr + block, ddown, mask=inside)
    tl.store(dup_bias_ptr + share * H + h, dup_bias, mask=h < H)
    if tl.program_id(1) == 0:
        tl.store(ddown_bias_ptr + share * C + c, ddown_bias, mask=c < C)


@triton.jit
def _hidden(u, up_ptr, up_bias_ptr, down_ptr, h, c, C: tl.constexpr, H: tl.constexpr):
    """Hidden values h before GELU, [tokens, HIDDEN] in float32, and the columns h of `down`, [CHANNELS, HIDDEN]."""
    inside = (c < C)[:, None] & (h < H)[None, :]
    up = tl.load(up_ptr + h[None, :] * C + c[:, None], mask=inside, other=0.0)
    down = tl.load(down_ptr + c[:, None] * H + h[None, :], mask=inside, other=0.0)
    bias = tl.load(up_bias_ptr + h, mask=h < H, other=0.0).to(tl.float32)
    return tl.dot(u, up, input_precision="ieee") + bias[None, :], down


@triton.jit
def _gelu(x):
    """GELU and its derivative."""
    small = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * small)
    bell = tl.exp2(x * x * (-0.5 * LOG2_E))
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    half = 0.5 * tail * bell
    above = tl.where(x >= 0, 1.0 - half, half)  # the normal distribution's integral up to x
    return x * above, above + x * bell * 0.3989422804014327


def forward(x, gain, shift, up, up_bias, down, down_bias, eps: float, residual: bool) -> torch.Tensor:
    """Return y, contiguous, in the dtype of x; arguments as `fmri_scale.kernels.mlp.norm_mlp`."""
    refuse_float64(x)
    if _by_torch(x):
        return cpu.forward(x, gain, shift, up, up_bias, down, down_bias, eps, residual)
    x, weights = x.contiguous(), [v.contiguous() for v in (gain, shift, up, up_bias, down, down_bias)]
    y = torch.empty_like(x)
    rows, constants = x.numel() // x.shape[-1], _constants(x, up, eps)
    grid = (triton.cdiv(rows, constants["TOKENS"]),)
    launch(mlp_kernel, grid, x.device, x, *weights, y, rows, RESIDUAL=residual, **constants, num_warps=4)
    return y


def backward(dy, x, gain, shift, up, up_bias, down, down_bias, eps: float, residual: bool) -> tuple[torch.Tensor, ...]:
    """Return the gradients of the seven tensors, in the dtype of each."""
    refuse_float64(x)
    if _by_torch(x):
        return cpu.backward(dy, x, gain, shift, up, up_bias, down, down_bias, eps, residual)
    dy, x = dy.contiguous(), x.contiguous()
    weights = [v.contiguous() for v in (gain, shift, up, up_bias, down)]
    (hidden, width), rows, constants = up.shape, x.numel() // x.shape[-1], _constants(x, up, eps)
    programs = triton.cdiv(rows, constants["TOKENS"])

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    dx, norm = torch.empty_like(x), [empty(programs, width) for _ in range(2)]
    launch(
        mlp_input_kernel,
        (programs,),
        x.device,
        *(dy, x, *weights, dx, *norm, rows),
        RESIDUAL=residual,
        **constants,
        num_warps=4,
    )
    constants = _constants(x, up, eps, tuning.mlp_tile(x.device))
    shares = min(SHARES, triton.cdiv(rows, constants["TOKENS"]))
    maps = [empty(shares, hidden, width), empty(shares, hidden), empty(shares, hidden, width), empty(shares, width)]
    grid = (shares, triton.cdiv(hidden, constants["HIDDEN"]))
    launch(mlp_weight_kernel, grid, x.device, *(dy, x, *weights, *maps, rows), **constants, num_warps=4)
    d_gain, d_shift, d_up, d_up_bias, d_down, d_down_bias = (v.sum(0).to(x.dtype) for v in (*norm, *maps))
    return dx, d_gain, d_shift, d_up, d_up_bias, d_down.t().contiguous(), d_down_bias


def _constants(x: torch.Tensor, up: torch.Tensor, eps: float, tile: tuple[int, int] | None = None) -> dict:
    """Constants of a launch; `tile` is what bfloat16 tokens of few channels take instead of `TILES`."""
    width = x.shape[-1]
    channels = max(16, triton.next_power_of_2(width))
    tokens, hidden = (TILES if channels <= NARROW else WIDE)[x.dtype]
    if tile is not None and channels <= NARROW and x.dtype == torch.bfloat16:
        tokens, hidden = tile
    return {"EPS": eps, "C": width, "H": up.shape[0], "CHANNELS": channels, "HIDDEN": hidden, "TOKENS": tokens}


def _by_torch(x: torch.Tensor) -> bool:
    return x.shape[-1] > WIDEST.get(x.dtype, 0)
