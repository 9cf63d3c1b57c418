"""The scan by mamba_ssm's Mamba-1 CUDA kernels (`selective_scan_cuda`), an alternative where they were built.

They want windows as sequences, `(windows, E, L)` with L contiguous, so tokens are gathered into window order and
results scattered back; and they start from zero, so prompts need another backend. Gradients of B and C are summed
with atomics, so they do not repeat bit for bit.

Legend: B clips, N tokens, E channels, S states, W windows of all clips, L tokens of a window.
"""

import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.windows import Windows


def forward(x, dt, A, B, C, D, windows: Windows, h0, reverse: bool) -> torch.Tensor:
    """Return y (B, N, E) in the dtype of x; arguments as `fmri_scale.kernels.scan.scan`."""
    sequences = _Sequences(x, windows, h0, reverse)
    y, _ = sequences.run(x, dt, A, B, C, D)
    return sequences.scatter(y)


def backward(dy, x, dt, A, B, C, D, windows: Windows, h0, reverse: bool) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x, dt, A, B, C, D and a stand-in for h0; the states are computed again."""
    import selective_scan_cuda

    sequences = _Sequences(x, windows, h0, reverse)
    inputs = sequences.inputs(x, dt, A, B, C, D)
    y, states = sequences.run(x, dt, A, B, C, D)
    upstream = sequences.gather(dy).to(x.dtype)
    grads = selective_scan_cuda.bwd(*inputs, None, None, upstream, states, y, None, False, False)
    dx, ddt, dA, dB, dC, dD = grads[:6]
    return (
        sequences.scatter(dx),
        sequences.scatter(ddt).to(dt.dtype),
        dA.to(A.dtype),
        sequences.scatter(dB.squeeze(1)).to(B.dtype),
        sequences.scatter(dC.squeeze(1)).to(C.dtype),
        dD.to(D.dtype),
        torch.empty_like(A),
    )


class _Sequences:
    """Windows of a batch as sequences, and back."""

    def __init__(self, x: torch.Tensor, windows: Windows, h0: torch.Tensor | None, reverse: bool) -> None:
        if h0 is not None:
            raise ConfigError(
                "kernel backend mamba_ssm starts every window from zero: for prompts take triton or torch"
            )
        if windows.table is not None:
            raise ConfigError("kernel backend mamba_ssm scans windows of one length: take triton or torch")
        self.order = windows.order(x.device, reverse)
        self.batch = x.shape[0]

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(B, N, width)` to `(W, width, L)`, contiguous."""
        return tokens[:, self.order].flatten(0, 1).transpose(1, 2).contiguous()

    def scatter(self, sequences: torch.Tensor) -> torch.Tensor:
        """`(W, width, L)` to `(B, N, width)`, contiguous."""
        rows = sequences.transpose(1, 2).reshape(self.batch, -1, sequences.shape[1])
        return torch.empty_like(rows).index_copy_(1, self.order.flatten(), rows)

    def inputs(self, x, dt, A, B, C, D) -> tuple[torch.Tensor, ...]:
        """What the CUDA functions take first."""
        moved = [self.gather(v).to(x.dtype) for v in (x, dt, B, C)]
        return moved[0], moved[1], A.float().contiguous(), moved[2].unsqueeze(1), moved[3].unsqueeze(1), D.float()

    def run(self, x, dt, A, B, C, D) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs as sequences and the saved states."""
        import selective_scan_cuda

        y, states, *_ = selective_scan_cuda.fwd(*self.inputs(x, dt, A, B, C, D), None, None, False)
        return y, states
