"""Norm and in-projection in Triton: tokens in, the two halves out; nothing normalised is ever in memory.

Forward: a program owns TOKENS tokens and walks the channels out INNER at a time. Backward: a program owns a share of
the tokens and keeps the whole gradient of the weight in registers, so that every token and every gradient is read
once; shares are then summed in a fixed order. The gradient that reaches the tokens past this branch is added on the
way. The channels of a half are cut into MAIN and TAIL, powers of two (72 = 64 + 8 in 16).

Products are in the dtype of x, sums and the norm in float32. Tokens wider than `WIDEST` leave too little room for
tiles; they (and float16) run in torch (`cpu.py`).
"""

import torch
import triton
import triton.language as tl

from fmri_scale.kernels.clips_jit import refuse_float64
from fmri_scale.kernels.jit import cut, launch
from fmri_scale.kernels.norm_jit import norm_gradient, normalise, places
from fmri_scale.kernels.project import cpu
from fmri_scale.kernels.tuning import architecture

WIDEST = {torch.float32: 16, torch.bfloat16: 128}
"Channels at most: products in float32 need registers for their operands."
TILES = {torch.float32: (16, 16), torch.bfloat16: (64, 32)}
"Tokens of a program and channels out at a time; chosen from what compiles without spills."
NARROW = 64
"Channels up to which 32 tokens at a time fit in registers beside the gradient of the weight; 16 of wider ones do."
SHARES = 256
"Parts into which the tokens are cut for the weight's gradient, whatever the device: sums must not depend on it."


@triton.jit
def project_kernel(
    x_ptr,
    gain_ptr,
    shift_ptr,
    weight_ptr,
    first_ptr,
    second_ptr,
    rows,
    EPS: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Both halves of TOKENS rows."""
    c = tl.arange(0, CHANNELS)
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    place, ok = places(row, c, rows, C)
    u, _plain, _rstd = normalise(tl.load(x_ptr + place, mask=ok, other=0.0), gain_ptr, shift_ptr, c, EPS, C)
    for start in range(0, E, INNER):
        e = start + tl.arange(0, INNER)
        inside = (c < C)[:, None] & (e < E)[None, :]
        out, there = places(row, e, rows, E)
        weight = weight_ptr + e[None, :] * C + c[:, None]
        first = tl.dot(u, tl.load(weight, mask=inside, other=0.0), input_precision="ieee")
        tl.store(first_ptr + out, first.to(first_ptr.dtype.element_ty), mask=there)
        second = tl.dot(u, tl.load(weight + E * C, mask=inside, other=0.0), input_precision="ieee")
        tl.store(second_ptr + out, second.to(second_ptr.dtype.element_ty), mask=there)


@triton.jit
def project_gradients_kernel(
    dfirst_ptr,
    dsecond_ptr,
    past_ptr,
    x_ptr,
    gain_ptr,
    shift_ptr,
    weight_ptr,
    dx_ptr,
    dgain_ptr,
    dshift_ptr,
    dweight_ptr,
    rows,
    EPS: tl.constexpr,
    PAST: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    CHANNELS: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """dx of a share of the rows, and their share of the gradients of the norm, (shares, C), and of the weight,
    (shares, 2 E, C)."""
    c = tl.arange(0, CHANNELS)
    em = tl.arange(0, MAIN)
    dgain = tl.zeros([CHANNELS], tl.float32)
    dshift = tl.zeros([CHANNELS], tl.float32)
    dfirstm = tl.zeros([MAIN, CHANNELS], tl.float32)
    dsecondm = tl.zeros([MAIN, CHANNELS], tl.float32)
    if TAIL > 0:
        et = MAIN + tl.arange(0, TAIL)
        dfirstt = tl.zeros([TAIL, CHANNELS], tl.float32)
        dsecondt = tl.zeros([TAIL, CHANNELS], tl.float32)
    for start in tl.range(tl.program_id(0) * TOKENS, rows, tl.num_programs(0) * TOKENS, disable_licm=True):
        base = tl.cast(start, tl.int64)  # what follows counts from it, in 32 bits
        row = tl.arange(0, TOKENS)
        left = rows - start
        place, ok = places(row, c, left, C)
        u, plain, rstd = normalise(
            tl.load(x_ptr + base * C + place, mask=ok, other=0.0), gain_ptr, shift_ptr, c, EPS, C
        )
        du = tl.zeros([TOKENS, CHANNELS], tl.float32)
        first, second = dfirst_ptr + base * E, dsecond_ptr + base * E
        du, dfirstm = _through(first, weight_ptr, row, em, c, u, du, dfirstm, left, E, C)
        du, dsecondm = _through(second, weight_ptr + E * C, row, em, c, u, du, dsecondm, left, E, C)
        if TAIL > 0:
            du, dfirstt = _through(first, weight_ptr, row, et, c, u, du, dfirstt, left, E, C)
            du, dsecondt = _through(second, weight_ptr + E * C, row, et, c, u, du, dsecondt, left, E, C)
        dgain += tl.sum(du * plain, 0)
        dshift += tl.sum(du, 0)
        dx = norm_gradient(du, plain, rstd, gain_ptr, c, C)
        if PAST:
            dx += tl.load(past_ptr + base * C + place, mask=ok, other=0.0).to(tl.float32)
        tl.store(dx_ptr + base * C + place, dx.to(dx_ptr.dtype.element_ty), mask=ok)
    share = tl.program_id(0)
    tl.store(dgain_ptr + share * C + c, dgain, mask=c < C)
    tl.store(dshift_ptr + share * C + c, dshift, mask=c < C)
    half = dweight_ptr + share * 2 * E * C
    _keep(half, em, c, dfirstm, E, C)
    _keep(half + E * C, em, c, dsecondm, E, C)
    if TAIL > 0:
        _keep(half, et, c, dfirstt, E, C)
        _keep(half + E * C, et, c, dsecondt, E, C)


@triton.jit
def _through(d_ptr, weight_ptr, row, e, c, u, du, dweight, rows, E: tl.constexpr, C: tl.constexpr):
    """Add what channels e of a half give to the gradient of u and to that of their weight."""
    place, ok = places(row, e, rows, E)
    d = tl.load(d_ptr + place, mask=ok, other=0.0)
    weight = tl.load(weight_ptr + e[:, None] * C + c[None, :], mask=(e < E)[:, None] & (c < C)[None, :], other=0.0)
    du = tl.dot(d, weight, du, input_precision="ieee")
    return du, tl.dot(tl.trans(d), u, dweight, input_precision="ieee")


@triton.jit
def _keep(dweight_ptr, e, c, dweight, E: tl.constexpr, C: tl.constexpr):
    tl.store(dweight_ptr + e[:, None] * C + c[None, :], dweight, mask=(e < E)[:, None] & (c < C)[None, :])


def forward(x, gain, shift, weight, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both halves (..., E), contiguous; arguments as `fmri_scale.kernels.project.norm_project`."""
    refuse_float64(x)
    if _by_torch(x):
        return cpu.forward(x, gain, shift, weight, eps)
    x, weights = x.contiguous(), [v.contiguous() for v in (gain, shift, weight)]
    first, second = (torch.empty(*x.shape[:-1], weight.shape[0] // 2, dtype=x.dtype, device=x.device) for _ in range(2))
    tokens, inner = TILES[x.dtype]
    rows, constants = x.numel() // x.shape[-1], {**_constants(x, weight, eps), "INNER": inner, "TOKENS": tokens}
    grid = (triton.cdiv(rows, tokens),)
    launch(project_kernel, grid, x.device, x, *weights, first, second, rows, **constants, num_warps=4)
    return first, second


def backward(d_first, d_second, past, x, gain, shift, weight, eps: float) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x, gain, shift and weight, in the dtype of each."""
    refuse_float64(x)
    if _by_torch(x):
        return cpu.backward(d_first, d_second, past, x, gain, shift, weight, eps)
    d_first, d_second, x = (v.contiguous() for v in (d_first, d_second, x))
    weights = [v.contiguous() for v in (gain, shift, weight)]
    (both, width), rows = weight.shape, x.numel() // x.shape[-1]
    tile = _gradient_tile(x, both // 2)
    shares = min(SHARES, triton.cdiv(rows, tile["TOKENS"]))

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    dx, sums = torch.empty_like(x), [empty(shares, width), empty(shares, width), empty(shares, both, width)]
    launch(
        project_gradients_kernel,
        (shares,),
        x.device,
        *(d_first, d_second, x if past is None else past.contiguous(), x, *weights, dx, *sums, rows),
        **_constants(x, weight, eps),
        PAST=past is not None,
        **tile,
    )
    return dx, *(v.sum(0).to(w.dtype) for v, w in zip(sums, weights, strict=True))


def _constants(x: torch.Tensor, weight: torch.Tensor, eps: float) -> dict:
    width = x.shape[-1]
    return {"EPS": eps, "C": width, "E": weight.shape[0] // 2, "CHANNELS": max(16, triton.next_power_of_2(width))}


def _gradient_tile(x: torch.Tensor, inner: int) -> dict[str, int]:
    # AMD: what is fetched ahead lies in shared memory, of which there is a quarter of NVIDIA's, or spills registers.
    nvidia = architecture(x.device).startswith("sm_")
    tokens = 32 if nvidia and x.dtype == torch.bfloat16 and x.shape[-1] <= NARROW else 16
    return {**cut(inner), "TOKENS": tokens, "num_warps": 8, "num_stages": 2 if nvidia else 1}


def _by_torch(x: torch.Tensor) -> bool:
    return x.shape[-1] > WIDEST.get(x.dtype, 0)
