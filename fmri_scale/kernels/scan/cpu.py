"""The selective scan on a CPU: blocked, bounded in memory, all cores; inputs are saved and states recomputed.

A block is a few windows and a tile of channels whose states stay in cache. Everything but the recurrence is one
large operation a block, and the recurrence is one call of `torch._foreach_addcmul_`, which updates its list front
to back, h[t] += a[t] * h[t-1], without returning to Python. Rows are gathered from and scattered to natural layout
block by block. Decay is exp2(dt * A * log2 e): torch's exp2 takes 0.34 ns an element, its exp 0.82 (AVX-512).

Float64 inputs are computed in float64, everything else in float32. Results do not depend on the number of threads.

Legend: B clips, N tokens, E channels (e of a tile), S states, w windows of a block, L tokens of a window,
R = L * w rows of a block, time first; states are laid out (L, w, S, e).
"""

import math
from collections.abc import Iterator

import torch

from fmri_scale.kernels.threads import blocks_of, run_blocks
from fmri_scale.kernels.windows import Visits, Windows

LOG2_E = math.log2(math.e)
BLOCK_ELEMENTS = 1 << 20
"States of a block (4 MB in float32), of which a worker holds two forward and three backward."
MIN_TILE = 32
"Channels of a tile at least, so that very long windows keep steps worth their call (0.5 us)."
MIN_BLOCKS = 8
"Pieces that the windows are cut into at least, where there are as many, so that cores share them."


def forward(
    x_BNE: torch.Tensor,
    dt_BNE: torch.Tensor,
    A_ES: torch.Tensor,
    B_BNS: torch.Tensor,
    C_BNS: torch.Tensor,
    D_E: torch.Tensor,
    windows: Windows,
    h0_ES: torch.Tensor | None,
    reverse: bool,
) -> torch.Tensor:
    """Return y (B, N, E) in the dtype of x."""
    cut = _Cut(x_BNE, A_ES, windows, buffers=2)
    A2, D, h0 = cut.parameters(A_ES, D_E, h0_ES)
    x, dt, Bs, Cs = (v.flatten(0, 1) for v in (x_BNE, dt_BNE, B_BNS, C_BNS))
    y_BNE = torch.empty(x_BNE.shape, dtype=x_BNE.dtype)
    y, visits = y_BNE.flatten(0, 1), Visits(windows, x_BNE.shape[0], reverse)

    def work(blocks: Iterator[range]) -> None:
        states = _States(cut)
        for block in blocks:
            visited = visits(block)
            rows = visited.at
            B_rows, C_rows = cut.rows(Bs, rows), cut.rows(Cs, rows).unsqueeze(1)
            for tile in cut.tiles:
                x_rows = cut.rows(x[:, tile], rows)
                states.resize(len(rows) // len(block), len(block), x_rows.shape[1])
                h = states.run(x_rows, cut.rows(dt[:, tile], rows), B_rows, A2[:, tile], h0[:, tile])
                y_rows = torch.bmm(C_rows, h).squeeze(1).addcmul_(x_rows, D[tile])
                visited.write(y[:, tile], y_rows.to(y.dtype))

    run_blocks(work, cut.blocks)
    return y_BNE


def backward(
    dy_BNE: torch.Tensor,
    x_BNE: torch.Tensor,
    dt_BNE: torch.Tensor,
    A_ES: torch.Tensor,
    B_BNS: torch.Tensor,
    C_BNS: torch.Tensor,
    D_E: torch.Tensor,
    windows: Windows,
    h0_ES: torch.Tensor | None,
    reverse: bool,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x, dt, A, B, C, D and h0, in the dtype of each (of A, where h0 is None)."""
    cut = _Cut(x_BNE, A_ES, windows, buffers=3)
    A2, D, h0 = cut.parameters(A_ES, D_E, h0_ES)
    A = A_ES.to(cut.dtype).t().contiguous()
    x, dt, Bs, Cs, dy = (v.flatten(0, 1) for v in (x_BNE, dt_BNE, B_BNS, C_BNS, dy_BNE))
    grads = [torch.empty(v.shape, dtype=v.dtype) for v in (x_BNE, dt_BNE, B_BNS, C_BNS)]
    dx, ddt, dB, dC = (g.flatten(0, 1) for g in grads)
    dA, dh0 = (torch.empty(len(cut.blocks), cut.S, cut.E, dtype=cut.dtype) for _ in range(2))
    dD = torch.empty(len(cut.blocks), cut.E, dtype=cut.dtype)
    visits = Visits(windows, x_BNE.shape[0], reverse)

    def work(blocks: Iterator[range]) -> None:
        states = _States(cut)
        for block in blocks:
            number = block.start // cut.w
            visited = visits(block)
            rows = visited.at
            B_rows, C_rows = cut.rows(Bs, rows), cut.rows(Cs, rows)
            dB_rows, dC_rows = torch.zeros_like(B_rows), torch.zeros_like(C_rows)
            for tile in cut.tiles:
                x_rows, dt_rows, dy_rows = (cut.rows(v[:, tile], rows) for v in (x, dt, dy))
                visited.clear(dy_rows)  # so nothing reaches back from behind a window's end
                states.resize(len(rows) // len(block), len(block), x_rows.shape[1])
                h = states.run(x_rows, dt_rows, B_rows, A2[:, tile], h0[:, tile])
                dC_rows += _over_channels(dy_rows, h)
                g = states.run_back(dy_rows, C_rows)
                dB_rows += _over_channels(dt_rows * x_rows, g)
                d_input = torch.bmm(B_rows.unsqueeze(1), g).squeeze(1)  # gradient of dt * x
                dx_rows = (d_input * dt_rows).addcmul_(dy_rows, D[tile])
                d_decay, dA[number, :, tile], dh0[number, :, tile] = states.decay_gradients(
                    dt_rows, A[:, tile], h0[:, tile]
                )
                visited.write(dx[:, tile], dx_rows.to(dx.dtype))
                visited.write(ddt[:, tile], d_decay.addcmul_(d_input, x_rows).to(ddt.dtype))
                dD[number, tile] = (dy_rows * x_rows).sum(0)
            visited.write(dB, dB_rows.to(dB.dtype))
            visited.write(dC, dC_rows.to(dC.dtype))

    run_blocks(work, cut.blocks)
    h0_dtype = A_ES.dtype if h0_ES is None else h0_ES.dtype
    shared = (dA.sum(0).t().to(A_ES.dtype), dD.sum(0).to(D_E.dtype), dh0.sum(0).t().to(h0_dtype))
    return grads[0], grads[1], shared[0], grads[2], grads[3], shared[1], shared[2]


class _Cut:
    """How a scan is cut up; a function of its shape alone, so that results repeat on any number of cores."""

    def __init__(self, x_BNE: torch.Tensor, A_ES: torch.Tensor, windows: Windows, buffers: int) -> None:
        self.E, self.S = A_ES.shape
        self.L = windows.length
        self.dtype = torch.float64 if x_BNE.dtype == torch.float64 else torch.float32
        total = x_BNE.shape[0] * windows.num_windows
        width = min(self.E, max(MIN_TILE, BLOCK_ELEMENTS // (self.L * self.S)))
        self.w = max(1, min(BLOCK_ELEMENTS // (self.L * self.S * width), total // MIN_BLOCKS))
        self.blocks = blocks_of(total, self.w)
        self.tiles = [slice(t.start, t.stop) for t in blocks_of(self.E, width)]
        self.elements = self.L * self.w * self.S * width
        self.buffers = buffers

    def parameters(
        self, A_ES: torch.Tensor, D_E: torch.Tensor, h0_ES: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return A * log2 e and h0 as (S, E), and D, in the dtype of the computation."""
        A2 = (A_ES.to(self.dtype) * LOG2_E).t().contiguous()
        h0 = torch.zeros_like(A2) if h0_ES is None else h0_ES.to(self.dtype).t().contiguous()
        return A2, D_E.to(self.dtype), h0

    def rows(self, flat: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Gather rows in the dtype of the computation."""
        return flat.index_select(0, index).to(self.dtype)


class _States:
    """A worker's buffers and their views by time step: decay `a`, state `h` and, backward, its gradient `g`."""

    def __init__(self, cut: _Cut) -> None:
        self.cut = cut
        self.memory = [torch.empty(cut.elements, dtype=cut.dtype) for _ in range(cut.buffers)]
        self.shape = (0, 0, 0)

    def resize(self, L: int, w: int, e: int) -> None:
        """Look at the buffers as states of w windows of L tokens and e channels; views are remade when these change."""
        if self.shape == (L, w, e):
            return
        self.shape, S = (L, w, e), self.cut.S
        whole = [m[: L * w * S * e].view(L, w, S, e) for m in self.memory]
        self.rows = [v.view(L * w, S, e) for v in whole]
        self.first = [v[0] for v in whole]
        self.steps = [list(v.unbind(0)) for v in whole]
        self.later = [v[1:] for v in whole]
        self.earlier = [v[:-1] for v in whole]

    def run(
        self, x: torch.Tensor, dt: torch.Tensor, Bs: torch.Tensor, A2_Se: torch.Tensor, h0_Se: torch.Tensor
    ) -> torch.Tensor:
        """Return all states (R, S, e); x, dt are (R, e), Bs (R, S)."""
        a, h = self.rows[:2]
        torch.mul(dt.unsqueeze(1), A2_Se, out=a)
        torch.exp2(a, out=a)
        torch.mul((dt * x).unsqueeze(1), Bs.unsqueeze(2), out=h)
        self.first[1].addcmul_(self.first[0], h0_Se)
        _recur(self.steps[1][1:], self.steps[0][1:], self.steps[1][:-1])
        return h

    def run_back(self, dy: torch.Tensor, Cs: torch.Tensor) -> torch.Tensor:
        """Return the gradient of all states (R, S, e) after `run`; dy is (R, e), Cs (R, S)."""
        g = self.rows[2]
        torch.mul(dy.unsqueeze(1), Cs.unsqueeze(2), out=g)
        last_to_first = self.steps[2][::-1]
        _recur(last_to_first[1:], self.steps[0][:0:-1], last_to_first[:-1])
        return g

    def decay_gradients(
        self, dt: torch.Tensor, A_Se: torch.Tensor, h0_Se: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the decay's share of ddt (R, e), dA (S, e) and dh0 (S, e) after `run_back`; overwrites the states."""
        a, h, g = self.rows
        torch.mul(a, g, out=a)
        dh0 = self.first[0].sum(0)
        self.later[0].mul_(self.earlier[1])
        self.first[0].mul_(h0_Se)  # a is now the gradient of dt * A: decay * state before * gradient of the state
        torch.mul(a, dt.unsqueeze(1), out=h)
        dA = h.sum(0)
        torch.mul(a, A_Se, out=a)
        return a.sum(1), dA, dh0


def _recur(now: list[torch.Tensor], decay: list[torch.Tensor], before: list[torch.Tensor]) -> None:
    """now[i] += decay[i] * before[i] for i in order; `before[i]` is `now[i - 1]`."""
    if now:
        torch._foreach_addcmul_(now, decay, before)


def _over_channels(row: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Contract (R, e) with (R, S, e) over e to (R, S)."""
    return torch.bmm(row.unsqueeze(1), states.transpose(1, 2)).squeeze(1)
