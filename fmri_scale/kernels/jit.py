"""What every Triton kernel here is built from: window geometry, masked loads and stores, the launch itself.

A kernel takes the geometry as the constant tuples GRID (padded grid D, H, W, T), WINDOW and SHIFT, so that divisions
become multiplications and an axis that is not shifted costs nothing. Of windows whose patches are listed LISTED is the
number in space, GRID is (M, 1, 1, T) and `table_ptr` their table (windows.py); of others LISTED is 0 and there is none.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from fmri_scale.kernels.windows import ListedWindows, Windows

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its tensors, with fused multiply-add whatever Triton's default is."""
    if device.type != "cuda":  # the interpreter, or a compilation without a device
        kernel[grid](*args, **constants, enable_fp_fusion=True)
        return
    with torch.cuda.device(device):
        kernel[grid](*args, **constants, enable_fp_fusion=True)


def geometry(windows: Windows) -> dict[str, Any]:
    """Return the geometry constants of a launch."""
    listed = windows.num_lists if isinstance(windows, ListedWindows) else 0
    return {"GRID": windows.grid, "WINDOW": windows.window, "SHIFT": windows.shift, "LISTED": listed}


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """A (B, N, width) tensor whose tokens are evenly spaced rows: itself where it already is, else a copy."""
    even = tensor.stride(2) == 1 and (tensor.shape[0] == 1 or tensor.stride(0) == tensor.shape[1] * tensor.stride(1))
    return tensor if even else tensor.contiguous()


def cut(width: int) -> dict[str, int]:
    """Cut a width into a MAIN part, the largest power of two in it, and a TAIL that fits one (0: none); 16 at least.

    Two tiles waste less than one that is padded to the next power of two: 72 is 64 and 8 in 16.
    """
    main = max(16, 1 << (width.bit_length() - 1))
    return {"MAIN": main, "TAIL": 0 if main >= width else max(16, triton.next_power_of_2(width - main))}


@triton.jit
def window_origin(number, table_ptr, GRID: tl.constexpr, WINDOW: tl.constexpr, LISTED: tl.constexpr):
    """Where a window (counted through the batch) begins: its first token per axis, before the shift, and the first
    token of its clip in the batch (int64). Listed: its first patch in the table, how many it has, nothing, the rest
    alike."""
    t = number % (GRID[3] // WINDOW[3])
    rest = number // (GRID[3] // WINDOW[3])
    if LISTED > 0:
        first = tl.load(table_ptr + rest % LISTED)
        patches = tl.load(table_ptr + rest % LISTED + 1) - first
        base = (rest // LISTED).to(tl.int64) * (GRID[0] * GRID[3])
        return first, patches, 0, t * WINDOW[3], base
    else:
        w = rest % (GRID[2] // WINDOW[2])
        rest = rest // (GRID[2] // WINDOW[2])
        h = rest % (GRID[1] // WINDOW[1])
        rest = rest // (GRID[1] // WINDOW[1])
        d = rest % (GRID[0] // WINDOW[0])
        clip = (rest // (GRID[0] // WINDOW[0])).to(tl.int64)
        base = clip * (GRID[0] * GRID[1] * GRID[2] * GRID[3])
        return d * WINDOW[0], h * WINDOW[1], w * WINDOW[2], t * WINDOW[3], base


@triton.jit
def num_rows(origin, WINDOW: tl.constexpr, LISTED: tl.constexpr):
    """Rows of a window: places in space that it visits."""
    if LISTED > 0:
        return origin[1]
    else:
        return WINDOW[0] * WINDOW[1] * WINDOW[2]


@triton.jit
def wrap(place, SIZE: tl.constexpr, SHIFT: tl.constexpr):
    """Shift a coordinate cyclically."""
    place = place + SHIFT
    if SHIFT > 0:
        place = tl.where(place >= SIZE, place - SIZE, place)
    return place


@triton.jit
def row_token(
    row,
    origin,
    table_ptr,
    GRID: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Token, within its clip, of frame 0 at the place that row `row` of a window visits (rows raster d, h, w)."""
    if LISTED > 0:
        return tl.load(table_ptr + LISTED + 1 + origin[0] + row) * GRID[3]
    else:
        d = wrap(origin[0] + row // (WINDOW[1] * WINDOW[2]), GRID[0], SHIFT[0])
        h = wrap(origin[1] + row // WINDOW[2] % WINDOW[1], GRID[1], SHIFT[1])
        w = wrap(origin[2] + row % WINDOW[2], GRID[2], SHIFT[2])
        return ((d * GRID[1] + h) * GRID[2] + w) * GRID[3]


@triton.jit
def slot_token(
    slot,
    origin,
    table_ptr,
    GRID: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Token, within its clip, of slot `slot` of a window (slots raster d, h, w, t)."""
    row = row_token(slot // WINDOW[3], origin, table_ptr, GRID, WINDOW, SHIFT, LISTED)
    return row + wrap(origin[3] + slot % WINDOW[3], GRID[3], SHIFT[3])


@triton.jit
def load(pointer, ok, MASKED: tl.constexpr):
    """Load in float32; where not `ok`, 0. Unmasked loads are wider, so whether there is a mask is a constant."""
    if MASKED:
        return tl.load(pointer, mask=ok, other=0.0).to(tl.float32)
    else:
        return tl.load(pointer).to(tl.float32)


@triton.jit
def store(pointer, value, ok, MASKED: tl.constexpr):
    """Store in the pointer's dtype where `ok`."""
    if MASKED:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=ok)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) in float32."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) in float32, to 2e-6 of its value: log1p(s) / s on (0, 1] by a polynomial of degree 7."""
    s = tl.exp2(tl.abs(x) * -LOG2_E)
    p = -0.2449544966 + s * (0.1774520427 + s * (-0.1076811701 + s * (0.0440892391 + s * -0.0085390965)))
    p = 0.9999998212 + s * (-0.4999740422 + s * (0.3327547610 + s * p))
    return tl.maximum(x, 0.0) + s * p
