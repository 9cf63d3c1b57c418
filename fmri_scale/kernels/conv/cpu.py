"""The windowed convolution on a CPU: whole windows gathered into cache, one fused multiply-add a tap, all cores.

Inputs are saved and the pre-activation recomputed. Float64 is computed in float64, everything else in float32.

Legend: B clips, N tokens, E channels, K taps, w windows of a block, L tokens of a window; rows are (K - 1 + L, w, E).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fmri_scale.kernels.threads import blocks_of, run_blocks
from fmri_scale.kernels.windows import Visits, Windows

BLOCK_ELEMENTS = 1 << 18
"Values of a block (1 MB in float32)."


def forward(
    x_BNE: torch.Tensor,
    weight_EK: torch.Tensor,
    bias_E: torch.Tensor,
    windows: Windows,
    prefix_KE: torch.Tensor | None,
) -> torch.Tensor:
    """Return y (B, N, E) in the dtype of x."""
    conv = _Conv(x_BNE, weight_EK, bias_E, windows, prefix_KE)
    y_BNE = torch.empty(x_BNE.shape, dtype=x_BNE.dtype)
    x, y, visits = x_BNE.flatten(0, 1), y_BNE.flatten(0, 1), Visits(windows, x_BNE.shape[0])

    def work(blocks: Iterator[range]) -> None:
        for block in blocks:
            rows = visits(block)
            pre = conv.pre_activation(conv.rows(x, rows.at, len(block)))
            rows.write(y, F.silu(pre, inplace=True).view(-1, conv.E).to(y.dtype))

    run_blocks(work, conv.blocks)
    return y_BNE


def backward(
    dy_BNE: torch.Tensor,
    x_BNE: torch.Tensor,
    weight_EK: torch.Tensor,
    bias_E: torch.Tensor,
    windows: Windows,
    prefix_KE: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, weight, bias and the prefix (K - 1, E), in the dtype of each."""
    conv = _Conv(x_BNE, weight_EK, bias_E, windows, prefix_KE)
    dx_BNE = torch.empty(x_BNE.shape, dtype=x_BNE.dtype)
    x, dy, dx = (v.flatten(0, 1) for v in (x_BNE, dy_BNE, dx_BNE))
    K, E = conv.taps.shape
    d_taps, d_prefix = (torch.empty(len(conv.blocks), n, E, dtype=conv.dtype) for n in (K, K - 1))
    d_bias = torch.empty(len(conv.blocks), E, dtype=conv.dtype)
    visits = Visits(windows, x_BNE.shape[0])

    def work(blocks: Iterator[range]) -> None:
        for block in blocks:
            number, w = block.start // conv.w, len(block)
            visited = visits(block)
            rows = conv.rows(x, visited.at, w)
            L = len(visited.at) // w
            upstream = visited.clear(dy.index_select(0, visited.at)).to(conv.dtype).view(L, w, E)
            d_pre = torch.ops.aten.silu_backward(upstream, conv.pre_activation(rows))
            d_rows = torch.zeros_like(rows)
            for k in range(K):
                d_rows[k : k + L].addcmul_(d_pre, conv.taps[k])
                d_taps[number, k] = (rows[k : k + L] * d_pre).sum((0, 1))
            d_bias[number] = d_pre.sum((0, 1))
            d_prefix[number] = d_rows[: K - 1].sum(1)
            visited.write(dx, d_rows[K - 1 :].reshape(-1, E).to(dx.dtype))

    run_blocks(work, conv.blocks)
    prefix_dtype = x_BNE.dtype if prefix_KE is None else prefix_KE.dtype
    return (
        dx_BNE,
        d_taps.sum(0).t().to(weight_EK.dtype).contiguous(),
        d_bias.sum(0).to(bias_E.dtype),
        d_prefix.sum(0).to(prefix_dtype),
    )


class _Conv:
    """Parameters in the dtype of the computation, and how the windows are cut into blocks."""

    def __init__(self, x_BNE, weight_EK, bias_E, windows: Windows, prefix_KE) -> None:
        self.dtype = torch.float64 if x_BNE.dtype == torch.float64 else torch.float32
        self.taps = weight_EK.to(self.dtype).t().contiguous()
        self.bias = bias_E.to(self.dtype)
        self.prefix = None if prefix_KE is None else prefix_KE.to(self.dtype).unsqueeze(1)
        self.E = x_BNE.shape[2]
        self.w = max(1, BLOCK_ELEMENTS // (windows.length * self.E))
        self.blocks = blocks_of(x_BNE.shape[0] * windows.num_windows, self.w)

    def rows(self, flat: torch.Tensor, index: torch.Tensor, w: int) -> torch.Tensor:
        """Gather w windows behind their prefix, (K - 1 + L, w, E)."""
        before = self.taps.shape[0] - 1
        L = len(index) // w
        rows = torch.empty(before + L, w, self.E, dtype=self.dtype)
        rows[:before] = 0.0 if self.prefix is None else self.prefix
        rows[before:] = flat.index_select(0, index).view(L, w, self.E)
        return rows

    def pre_activation(self, rows: torch.Tensor) -> torch.Tensor:
        """Sum the taps, (L, w, E)."""
        L = rows.shape[0] - self.taps.shape[0] + 1
        pre = torch.addcmul(self.bias, rows[:L], self.taps[0])
        for k in range(1, self.taps.shape[0]):
            pre.addcmul_(rows[k : k + L], self.taps[k])
        return pre
