"""The backward kernel of the Triton scan: two sweeps over a window, no stored states.

With w_t = dy_t C_t h_t - dh_t dt_t x_t B_t (per channel and state) the gradient of log a_t = dt_t A is
g_t = dh_t a_t h_{t-1} = sum_{s >= t} w_s, because g_t - g_{t+1} = w_t: it telescopes. So the sweep forward in time,
which has h, and the sweep backward, which has dh, each contribute their own term, and
    d dt_t = sum_{s >= t} (p_s - q_s) + x_t <dh_t, B_t>,   p_t = dy_t <A C_t, h_t>,   q_t = dt_t x_t <A dh_t, B_t>,
    dA     = sum_t T_t w_t,   T_t = dt_1 + ... + dt_t.
(Yang et al. 2024, Gated Linear Attention, telescope a gate's gradient the same way.)

Legend: E channels, S states; names in m belong to the main tile, in t to the tail.
"""

import triton
import triton.language as tl

from fmri_scale.kernels.jit import LN_2, load, num_rows, row_token, store, window_origin, wrap
from fmri_scale.kernels.scan.tiles import channels, parameters


@triton.jit
def scan_backward_kernel(
    dy_ptr,
    x_ptr,
    dt_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    h0_ptr,
    p_ptr,
    dx_ptr,
    ddt_ptr,
    da_ptr,
    db_ptr,
    dc_ptr,
    dd_ptr,
    dh0_ptr,
    table_ptr,
    num_tokens,
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
    """All gradients of one window (program axis 0) and MAIN + TAIL channels (axis 1).

    dx and ddt are complete; db and dc have one layer of `num_tokens` tokens a channel tile; da, dd and dh0 one slice a
    window. p is float32 scratch (tokens, E).
    """
    MASKED: tl.constexpr = E % (MAIN + TAIL) != 0
    origin = window_origin(tl.program_id(0), table_ptr, GRID, WINDOW, LISTED)
    base = origin[4]
    first = tl.program_id(1) * (MAIN + TAIL)
    x_ptr += base * ROWS[0] + first
    dt_ptr += base * ROWS[1] + first
    b_ptr += base * ROWS[2]
    c_ptr += base * ROWS[3]
    dy_ptr += base * E + first
    p_ptr += base * E + first
    dx_ptr += base * E + first
    ddt_ptr += base * E + first
    layer = (tl.program_id(1).to(tl.int64) * num_tokens + base) * S
    db_ptr += layer
    dc_ptr += layer

    n = tl.arange(0, S)
    em = channels(MAIN)
    okm = em < E - first
    am, skipm, hm = parameters(a_ptr, d_ptr, h0_ptr, first, 0, n, E, S, MAIN, MASKED, HAS_H0)
    dam = tl.zeros_like(am)
    ddm = tl.zeros_like(skipm)
    timem = tl.zeros_like(skipm)
    if TAIL > 0:
        et = MAIN + channels(TAIL)
        okt = et < E - first
        at, skipt, ht = parameters(a_ptr, d_ptr, h0_ptr, first, MAIN, n, E, S, TAIL, MASKED, HAS_H0)
        dat = tl.zeros_like(at)
        ddt = tl.zeros_like(skipt)
        timet = tl.zeros_like(skipt)

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
            dym = load(dy_ptr + token * E + em, okm, MASKED)
            hm, dam, timem, pm, dcm = _sweep_forward(hm, am, dam, xm, dtm, dym, timem, b, c)
            store(p_ptr + token * E + em, pm, okm, MASKED)
            ddm += dym * xm
            dc = tl.sum(dcm, 1)
            if TAIL > 0:
                xt = load(x_ptr + token * ROWS[0] + et, okt, MASKED)
                dtt = load(dt_ptr + token * ROWS[1] + et, okt, MASKED)
                dyt = load(dy_ptr + token * E + et, okt, MASKED)
                ht, dat, timet, pt, dct = _sweep_forward(ht, at, dat, xt, dtt, dyt, timet, b, c)
                store(p_ptr + token * E + et, pt, okt, MASKED)
                ddt += dyt * xt
                dc = _join(dc, tl.sum(dct, 1))
            tl.store(dc_ptr + token * S + n, tl.sum(dc, 1).to(dc_ptr.dtype.element_ty))
    if LISTED > 0:  # not held until the end, where a list leaves no register for it (sm_80)
        _store_skip(dd_ptr, first, em, ddm, okm, E, MASKED)
        if TAIL > 0:
            _store_skip(dd_ptr, first, et, ddt, okt, E, MASKED)
    tl.debug_barrier()  # the sweep back reads p, which other threads of the warp wrote

    gm = tl.zeros_like(am)
    totalm = tl.zeros_like(skipm)
    if TAIL > 0:
        gt = tl.zeros_like(at)
        totalt = tl.zeros_like(skipt)
    for i in range(steps):
        step = i if REVERSE else steps - 1 - i
        row = row_token(step // GROUPS, origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
        for j in tl.static_range(UNROLL):
            frame = step % GROUPS * UNROLL + (j if REVERSE else UNROLL - 1 - j)
            token = row + wrap(origin[3] + frame, GRID[3], SHIFT[3])
            b = tl.load(b_ptr + token * ROWS[2] + n).to(tl.float32)
            c = tl.load(c_ptr + token * ROWS[3] + n).to(tl.float32)
            xm = load(x_ptr + token * ROWS[0] + em, okm, MASKED)
            dtm = load(dt_ptr + token * ROWS[1] + em, okm, MASKED)
            dym = load(dy_ptr + token * E + em, okm, MASKED)
            pm = load(p_ptr + token * E + em, okm, MASKED)
            gm, dam, timem, totalm, dxm, ddtm, dbm = _sweep_back(gm, am, dam, xm, dtm, dym, timem, totalm, pm, b, c)
            store(ddt_ptr + token * E + em, ddtm, okm, MASKED)
            store(dx_ptr + token * E + em, dxm + skipm * dym, okm, MASKED)
            db = tl.sum(dbm, 1)
            if TAIL > 0:
                xt = load(x_ptr + token * ROWS[0] + et, okt, MASKED)
                dtt = load(dt_ptr + token * ROWS[1] + et, okt, MASKED)
                dyt = load(dy_ptr + token * E + et, okt, MASKED)
                pt = load(p_ptr + token * E + et, okt, MASKED)
                gt, dat, timet, totalt, dxt, ddtt, dbt = _sweep_back(gt, at, dat, xt, dtt, dyt, timet, totalt, pt, b, c)
                store(ddt_ptr + token * E + et, ddtt, okt, MASKED)
                store(dx_ptr + token * E + et, dxt + skipt * dyt, okt, MASKED)
                db = _join(db, tl.sum(dbt, 1))
            tl.store(db_ptr + token * S + n, tl.sum(db, 1).to(db_ptr.dtype.element_ty))

    slice_ = tl.program_id(0).to(tl.int64) * E + first
    _store_tile(da_ptr, dd_ptr, dh0_ptr, slice_, em, n, dam, ddm, gm, okm, S, MASKED, HAS_H0, LISTED)
    if TAIL > 0:
        _store_tile(da_ptr, dd_ptr, dh0_ptr, slice_, et, n, dat, ddt, gt, okt, S, MASKED, HAS_H0, LISTED)


@triton.jit
def _sweep_forward(h, a2, da, x, dt, dy, time, b, c):
    """One token of the sweep forward: states, dA so far, T_t, p_t and the summands of dC."""
    time = time + dt
    h = tl.exp2(a2 * dt[None, :, :]) * h + b[:, None, None] * (dt * x)[None, :, :]
    hc = h * c[:, None, None]
    p = tl.sum(hc * a2, 0) * (dy * LN_2)
    da += hc * (time * dy)[None, :, :]
    return h, da, time, p, h * dy[None, :, :]


@triton.jit
def _sweep_back(g, a2, da, x, dt, dy, time, total, p, b, c):
    """One token of the sweep back; g enters as a_{t+1} dh_{t+1} and leaves as a_t dh_t."""
    g = g + c[:, None, None] * dy[None, :, :]
    dtx = dt * x
    gb = g * b[:, None, None]
    d_input = tl.sum(gb, 0)
    q = tl.sum(gb * a2, 0) * (dtx * LN_2)
    da -= gb * (time * dtx)[None, :, :]
    total = total + (p - q)
    db = g * dtx[None, :, :]
    g = g * tl.exp2(a2 * dt[None, :, :])
    return g, da, time - dt, total, dt * d_input, total + x * d_input, db


@triton.jit
def _join(main, tail):
    """Add two folded tiles whose channels are summed next; a narrower tail is spread over the main tile."""
    if main.shape[1] == tail.shape[1]:
        return main + tail
    else:
        return main + tl.sum(tail, 1)[:, None] * (1.0 / main.shape[1])


@triton.jit
def _store_skip(dd_ptr, first, e, dd, ok, E: tl.constexpr, MASKED: tl.constexpr):
    """Write a window's share of the gradient of D."""
    store(dd_ptr + tl.program_id(0).to(tl.int64) * E + first + e, dd, ok, MASKED)


@triton.jit
def _store_tile(
    da_ptr,
    dd_ptr,
    dh0_ptr,
    slice_,
    e,
    n,
    da,
    dd,
    dh0,
    ok,
    S: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_H0: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Write a window's share of the parameters' gradients."""
    place = (slice_ + e)[None, :, :] * S + n[:, None, None]
    store(da_ptr + place, da, ok[None, :, :], MASKED)
    if LISTED == 0:
        store(dd_ptr + slice_ + e, dd, ok, MASKED)
    if HAS_H0:
        store(dh0_ptr + place, dh0, ok[None, :, :], MASKED)
