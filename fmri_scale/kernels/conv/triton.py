"""The windowed convolution in Triton: natural layout in and out, every input row read about once.

A window is cut into runs of RUN consecutive slots; a tile holds all runs of a window side by side and walks them
together, so the last four inputs stay in registers. Backward recomputes the pre-activation, up to three slots past
the end of each run (their gradient reaches back into it); the weights' gradients are summed per window in registers,
then over windows in a fixed order.

Up to 4 taps; fewer are padded with zeros in front, as is the prefix. A window of listed patches has as many runs as a
whole one, but shorter ones.

Legend: E channels e; tiles are [RUNS, channels]; x3 is the input of the slot at hand, x0 the one three slots before.
"""

import torch
import triton
import triton.language as tl

from fmri_scale.errors import ConfigError
from fmri_scale.kernels import tuning
from fmri_scale.kernels.jit import geometry, launch, num_rows, rows_of, sigmoid, slot_token, window_origin
from fmri_scale.kernels.windows import Windows

TAPS = 4


@triton.jit
def conv_forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    prefix_ptr,
    y_ptr,
    table_ptr,
    E: tl.constexpr,
    ROW: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    RUN: tl.constexpr,
    RUNS: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    GRID: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """y of one window (program axis 0) and MAIN + TAIL channels (axis 1); ROW is the row stride of x."""
    origin = window_origin(tl.program_id(0), table_ptr, GRID, WINDOW, LISTED)
    run = (num_rows(origin, WINDOW, LISTED) * WINDOW[3] + RUNS - 1) // RUNS if LISTED > 0 else RUN
    x_ptr += origin[4] * ROW
    y_ptr += origin[4] * E
    first = tl.program_id(1) * (MAIN + TAIL)
    for part in tl.static_range(2):
        if part == 0 or TAIL > 0:
            e = first + (tl.arange(0, MAIN) if part == 0 else MAIN + tl.arange(0, TAIL))
            start = tl.arange(0, RUNS) * run
            w0, w1, w2, w3, bias = _weights(weight_ptr, bias_ptr, e, E)
            x0 = _input(
                x_ptr, prefix_ptr, start - 3, e, origin, table_ptr, E, ROW, HAS_PREFIX, GRID, WINDOW, SHIFT, LISTED
            )
            x1 = _input(
                x_ptr, prefix_ptr, start - 2, e, origin, table_ptr, E, ROW, HAS_PREFIX, GRID, WINDOW, SHIFT, LISTED
            )
            x2 = _input(
                x_ptr, prefix_ptr, start - 1, e, origin, table_ptr, E, ROW, HAS_PREFIX, GRID, WINDOW, SHIFT, LISTED
            )
            for i in range(run):
                token, inside = _token(start + i, origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
                ok = inside[:, None] & (e < E)[None, :]
                x3 = tl.load(x_ptr + token * ROW + e[None, :], mask=ok, other=0.0).to(tl.float32)
                pre = x0 * w0 + x1 * w1 + x2 * w2 + x3 * w3 + bias
                tl.store(y_ptr + token * E + e[None, :], (pre * sigmoid(pre)).to(y_ptr.dtype.element_ty), mask=ok)
                x0 = x1
                x1 = x2
                x2 = x3


@triton.jit
def conv_backward_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    prefix_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    dprefix_ptr,
    table_ptr,
    E: tl.constexpr,
    ROW: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    RUN: tl.constexpr,
    RUNS: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    GRID: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """dx of one window and MAIN + TAIL channels; its share of dweight (windows, 4, E), dbias and dprefix."""
    origin = window_origin(tl.program_id(0), table_ptr, GRID, WINDOW, LISTED)
    run = (num_rows(origin, WINDOW, LISTED) * WINDOW[3] + RUNS - 1) // RUNS if LISTED > 0 else RUN
    x_ptr += origin[4] * ROW
    dy_ptr += origin[4] * E
    dx_ptr += origin[4] * E
    share = tl.program_id(0).to(tl.int64) * E
    first = tl.program_id(1) * (MAIN + TAIL)
    for part in tl.static_range(2):
        if part == 0 or TAIL > 0:
            e = first + (tl.arange(0, MAIN) if part == 0 else MAIN + tl.arange(0, TAIL))
            start = tl.arange(0, RUNS) * run
            w0, w1, w2, w3, bias = _weights(weight_ptr, bias_ptr, e, E)
            x0 = _input(
                x_ptr, prefix_ptr, start - 3, e, origin, table_ptr, E, ROW, HAS_PREFIX, GRID, WINDOW, SHIFT, LISTED
            )
            x1 = _input(
                x_ptr, prefix_ptr, start - 2, e, origin, table_ptr, E, ROW, HAS_PREFIX, GRID, WINDOW, SHIFT, LISTED
            )
            x2 = _input(
                x_ptr, prefix_ptr, start - 1, e, origin, table_ptr, E, ROW, HAS_PREFIX, GRID, WINDOW, SHIFT, LISTED
            )
            dx0 = tl.zeros_like(x0)  # gradient so far of the input that x0 holds, and so on
            dx1 = tl.zeros_like(x0)
            dx2 = tl.zeros_like(x0)
            dw0 = tl.zeros_like(x0)
            dw1 = tl.zeros_like(x0)
            dw2 = tl.zeros_like(x0)
            dw3 = tl.zeros_like(x0)
            db = tl.zeros_like(x0)
            token0, inside0 = _token(start - 3, origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
            token1, inside1 = _token(start - 2, origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
            token2, inside2 = _token(start - 1, origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
            for i in range(run + 3):
                token, inside = _token(start + i, origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
                ok = inside[:, None] & (e < E)[None, :]
                x3 = tl.load(x_ptr + token * ROW + e[None, :], mask=ok, other=0.0).to(tl.float32)
                dy = tl.load(dy_ptr + token * E + e[None, :], mask=ok, other=0.0).to(tl.float32)
                pre = x0 * w0 + x1 * w1 + x2 * w2 + x3 * w3 + bias
                gate = sigmoid(pre)
                dpre = dy * gate * (1.0 + pre * (1.0 - gate))
                counted = tl.where(i < run, dpre, 0.0)
                dw0 += counted * x0
                dw1 += counted * x1
                dw2 += counted * x2
                dw3 += counted * x3
                db += counted
                dx0 += dpre * w0
                own = inside0[:, None] & (e < E)[None, :] & (i >= 3)  # what lies before belongs to the run before
                tl.store(dx_ptr + token0 * E + e[None, :], dx0.to(dx_ptr.dtype.element_ty), mask=own)
                if HAS_PREFIX:
                    before = share * 3 + tl.minimum(i, 2) * E + e[None, :] + start[:, None] * 0
                    tl.store(dprefix_ptr + before, dx0, mask=((start == 0) & (i < 3))[:, None] & (e < E)[None, :])
                dx0 = dx1 + dpre * w1
                dx1 = dx2 + dpre * w2
                dx2 = dpre * w3
                x0 = x1
                x1 = x2
                x2 = x3
                token0 = token1
                token1 = token2
                token2 = token
                inside0 = inside1
                inside1 = inside2
                inside2 = inside
            shares = dweight_ptr + share * 4 + e
            tl.store(shares, tl.sum(dw0, 0), mask=e < E)
            tl.store(shares + E, tl.sum(dw1, 0), mask=e < E)
            tl.store(shares + 2 * E, tl.sum(dw2, 0), mask=e < E)
            tl.store(shares + 3 * E, tl.sum(dw3, 0), mask=e < E)
            tl.store(dbias_ptr + share + e, tl.sum(db, 0), mask=e < E)


@triton.jit
def _weights(weight_ptr, bias_ptr, e, E: tl.constexpr):
    """Four taps (oldest first) and the bias of channels, [1, channels] each; taps are stored (4, E)."""
    ok = e < E
    w0 = tl.load(weight_ptr + e, mask=ok, other=0.0).to(tl.float32)
    w1 = tl.load(weight_ptr + E + e, mask=ok, other=0.0).to(tl.float32)
    w2 = tl.load(weight_ptr + 2 * E + e, mask=ok, other=0.0).to(tl.float32)
    w3 = tl.load(weight_ptr + 3 * E + e, mask=ok, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + e, mask=ok, other=0.0).to(tl.float32)
    return w0[None, :], w1[None, :], w2[None, :], w3[None, :], bias[None, :]


@triton.jit
def _token(
    slot,
    origin,
    table_ptr,
    GRID: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Token of each slot inside its clip, [RUNS, 1], and which slots the window has, [RUNS]."""
    inside = (slot >= 0) & (slot < num_rows(origin, WINDOW, LISTED) * WINDOW[3])
    return slot_token(tl.where(inside, slot, 0), origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)[:, None], inside


@triton.jit
def _input(
    x_ptr,
    prefix_ptr,
    slot,
    e,
    origin,
    table_ptr,
    E: tl.constexpr,
    ROW: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    GRID: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Raw inputs of slots, [RUNS, channels] in float32; before slot 0 the prefix (3, E) or zeros."""
    token, inside = _token(slot, origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
    ok = inside[:, None] & (e < E)[None, :]
    x = tl.load(x_ptr + token * ROW + e[None, :], mask=ok, other=0.0).to(tl.float32)
    if HAS_PREFIX:
        before = (slot < 0)[:, None] & (e < E)[None, :]
        x += tl.load(prefix_ptr + (slot + 3)[:, None] * E + e[None, :], mask=before, other=0.0).to(tl.float32)
    return x


def forward(x, weight, bias, windows: Windows, prefix) -> torch.Tensor:
    """Return y (B, N, E), contiguous, in the dtype of x; arguments as `fmri_scale.kernels.conv.conv_silu`."""
    x = rows_of(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    taps, before = _pad_taps(weight, prefix)
    grid, constants = _layout("conv_forward", x, windows, prefix)
    launch(conv_forward_kernel, grid, x.device, x, taps, bias, before, y, windows.table, **constants)
    return y


def backward(dy, x, weight, bias, windows: Windows, prefix) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x, weight, bias and prefix (undefined where prefix is None)."""
    x = rows_of(x)
    width, count = x.shape[2], x.shape[0] * windows.num_windows

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight, dbias = empty(count, TAPS, width), empty(count, width)
    dprefix = empty(count if prefix is not None else 1, TAPS - 1, width)
    taps, before = _pad_taps(weight, prefix)
    grid, constants = _layout("conv_backward", x, windows, prefix)
    outputs = (dx, dweight, dbias, dprefix)
    launch(
        conv_backward_kernel,
        grid,
        x.device,
        dy.contiguous(),
        x,
        taps,
        bias,
        before,
        *outputs,
        windows.table,
        **constants,
    )
    missing = TAPS - weight.shape[1]
    return (
        dx,
        dweight.sum(0)[missing:].t().to(weight.dtype).contiguous(),
        dbias.sum(0).to(bias.dtype),
        dprefix.sum(0)[missing:].to(x.dtype if prefix is None else prefix.dtype).contiguous(),
    )


def _pad_taps(weight: torch.Tensor, prefix: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Taps as (4, E) and the prefix as (3, E), zeros in front; the prefix is a stand-in where there is none."""
    missing = TAPS - weight.shape[1]
    if missing < 0:
        raise ConfigError(f"kernel backend triton: {weight.shape[1]} taps; it convolves up to {TAPS}, take torch")
    taps = torch.nn.functional.pad(weight.t(), (0, 0, missing, 0)).contiguous()
    if prefix is None:
        return taps, taps
    return taps, torch.nn.functional.pad(prefix, (0, 0, missing, 0)).contiguous()


def _layout(kernel: str, x: torch.Tensor, windows: Windows, prefix) -> tuple[tuple[int, int], dict]:
    count = x.shape[0] * windows.num_windows
    tile = tuning.conv_tile(kernel, x.device, x.shape[2], windows.length)
    constants = {"E": x.shape[2], "ROW": x.stride(1), "HAS_PREFIX": prefix is not None}
    return (count, tile.programs), {**constants, **tile.constants, **geometry(windows)}
