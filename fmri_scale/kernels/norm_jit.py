"""Layer norm inside Triton kernels: tokens in rows, channels padded to a power of two; sums in float32."""

import triton
import triton.language as tl


@triton.jit
def places(row, c, rows, C: tl.constexpr):
    """Places of tokens' channels in an array (rows, C), and which there are."""
    return row[:, None] * C + c[None, :], (row < rows)[:, None] & (c < C)[None, :]


@triton.jit
def normalise(x, gain_ptr, shift_ptr, c, EPS: tl.constexpr, C: tl.constexpr):
    """Normalised tokens in the dtype of x (0 behind C), the same before gain and shift in float32, and 1 / sd."""
    inside = (c < C)[None, :]
    gain = tl.load(gain_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    value = x.to(tl.float32)
    centred = tl.where(inside, value - (tl.sum(value, 1) / C)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + EPS)
    plain = centred * rstd[:, None]
    return (plain * gain[None, :] + shift[None, :]).to(x.dtype), plain, rstd


@triton.jit
def norm_gradient(du, plain, rstd, gain_ptr, c, C: tl.constexpr):
    """Gradient of the tokens, in float32, from that of the normalised ones (0 behind C)."""
    scaled = du * tl.load(gain_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    along = tl.sum(scaled * plain, 1) / C
    return (scaled - (tl.sum(scaled, 1) / C)[:, None] - plain * along[:, None]) * rstd[:, None]
