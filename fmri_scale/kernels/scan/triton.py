"""The selective scan in Triton: one program a window and channel tile, states in registers, natural layout.

Forward walks a window once; backward twice (`sweeps.py`), and no state is ever stored. Every output is written by
exactly one program and partial sums are added in a fixed order, so results repeat bit for bit.

Legend: E channels, S states; names in m belong to the main tile, in t to the tail (`tiles.py`).
"""

import torch
import triton
import triton.language as tl

from fmri_scale.kernels import tuning
from fmri_scale.kernels.jit import geometry, launch, load, num_rows, row_token, rows_of, store, window_origin, wrap
from fmri_scale.kernels.scan.sweeps import scan_backward_kernel
from fmri_scale.kernels.scan.tiles import channels, parameters
from fmri_scale.kernels.windows import Windows


@triton.jit
def scan_forward_kernel(
    x_ptr,
    dt_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    h0_ptr,
    y_ptr,
    table_ptr,
    E: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    UNROLL: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_H0: tl.constexpr,
    GRID: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """y of one window (program axis 0) and MAIN + TAIL channels (axis 1); ROWS are the row strides of x, dt, B, C."""
    MASKED: tl.constexpr = E % (MAIN + TAIL) != 0
    origin = window_origin(tl.program_id(0), table_ptr, GRID, WINDOW, LISTED)
    base = origin[4]
    first = tl.program_id(1) * (MAIN + TAIL)
    x_ptr += base * ROWS[0] + first
    dt_ptr += base * ROWS[1] + first
    b_ptr += base * ROWS[2]
    c_ptr += base * ROWS[3]
    y_ptr += base * E + first

    n = tl.arange(0, S)
    em = channels(MAIN)
    okm = em < E - first
    am, dm, hm = parameters(a_ptr, d_ptr, h0_ptr, first, 0, n, E, S, MAIN, MASKED, HAS_H0)
    if TAIL > 0:
        et = MAIN + channels(TAIL)
        okt = et < E - first
        at, dt, ht = parameters(a_ptr, d_ptr, h0_ptr, first, MAIN, n, E, S, TAIL, MASKED, HAS_H0)

    GROUPS: tl.constexpr = WINDOW[3] // UNROLL
    steps = num_rows(origin, WINDOW, LISTED) * GROUPS
    for i in range(steps):
        step = steps - 1 - i if REVERSE else i
        row = row_token(step // GROUPS, origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
        for j in tl.static_range(UNROLL):
            frame = step % GROUPS * UNROLL + (UNROLL - 1 - j if REVERSE else j)
            token = row + wrap(origin[3] + frame, GRID[3], SHIFT[3])
            b = tl.load(b_ptr + token * ROWS[2] + n).to(tl.float32)
            c = tl.load(c_ptr + token * ROWS[3] + n).to(tl.float32)
            xm = load(x_ptr + token * ROWS[0] + em, okm, MASKED)
            dtm = load(dt_ptr + token * ROWS[1] + em, okm, MASKED)
            hm, ym = _advance(hm, am, xm, dtm, b, c)
            store(y_ptr + token * E + em, ym + dm * xm, okm, MASKED)
            if TAIL > 0:
                xt = load(x_ptr + token * ROWS[0] + et, okt, MASKED)
                dtt = load(dt_ptr + token * ROWS[1] + et, okt, MASKED)
                ht, yt = _advance(ht, at, xt, dtt, b, c)
                store(y_ptr + token * E + et, yt + dt * xt, okt, MASKED)


@triton.jit
def _advance(h, a2, x, dt, b, c):
    """States of a tile after one token, and <h, C>; a2 is A * log2 e."""
    h = tl.exp2(a2 * dt[None, :, :]) * h + b[:, None, None] * (dt * x)[None, :, :]
    return h, tl.sum(h * c[:, None, None], 0)


def forward(x, dt, A, B, C, D, windows: Windows, h0, reverse: bool) -> torch.Tensor:
    """Return y (B, N, E), contiguous, in the dtype of x; arguments as `fmri_scale.kernels.scan.scan`."""
    x, dt, B, C = (rows_of(v) for v in (x, dt, B, C))
    batch, _, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = tuning.scan_tile("scan_forward", x.device, width, batch * windows.num_windows, windows.window[3])
    launch(
        scan_forward_kernel,
        (batch * windows.num_windows, tile.programs),
        x.device,
        *(x, dt, A.contiguous(), B, C, D, A if h0 is None else h0.contiguous(), y, windows.table),
        **_constants(x, dt, A, B, C, windows, h0, reverse),
        **tile.constants,
    )
    return y


def backward(dy, x, dt, A, B, C, D, windows: Windows, h0, reverse: bool) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x, dt, A, B, C, D, h0 (of A's shape and undefined where h0 is None)."""
    x, dt, B, C = (rows_of(v) for v in (x, dt, B, C))
    batch, tokens, width = x.shape
    states, count = A.shape[1], batch * windows.num_windows
    tile = tuning.scan_tile("scan_backward", x.device, width, count, windows.window[3])

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    whole = tile.programs == 1  # one program sees all channels of a window: dB and dC need no second sum
    dx, ddt, p = empty(*x.shape, dtype=x.dtype), empty(*x.shape, dtype=dt.dtype), empty(*x.shape)
    dB, dC = (empty(tile.programs, batch, tokens, states, dtype=v.dtype if whole else torch.float32) for v in (B, C))
    dA, dD = empty(count, width, states), empty(count, width)
    dh0 = empty(1) if h0 is None else empty(count, width, states)
    launch(
        scan_backward_kernel,
        (count, tile.programs),
        x.device,
        *(dy.contiguous(), x, dt, A.contiguous(), B, C, D, A if h0 is None else h0.contiguous()),
        *(p, dx, ddt, dA, dB, dC, dD, dh0, windows.table, batch * tokens),
        **_constants(x, dt, A, B, C, windows, h0, reverse),
        **tile.constants,
    )
    dB, dC = (g[0] if whole else g.sum(0).to(v.dtype) for g, v in ((dB, B), (dC, C)))
    dh0 = torch.empty_like(A) if h0 is None else dh0.sum(0).to(h0.dtype)
    return dx, ddt, dA.sum(0).to(A.dtype), dB, dC, dD.sum(0).to(D.dtype), dh0


def _constants(x, dt, A, B, C, windows: Windows, h0, reverse: bool) -> dict:
    rows = tuple(v.stride(1) for v in (x, dt, B, C))
    flags = {"REVERSE": reverse, "HAS_H0": h0 is not None}
    return {"E": x.shape[2], "S": A.shape[1], "ROWS": rows, **flags, **geometry(windows)}
