"""Selective scan (Mamba-1) inside shifted windows, read and written in natural token order.

`scan` is the operator; `prefix_scan` brings the few prompt tokens that precede every window to the state the
windows start from. Neither applies softplus, the convolution or the gate.

Legend: B clips, N = D*H*W*T tokens in natural order, E channels, S states, P prompt tokens.
"""

import torch

from fmri_scale.kernels.scan.op import scan_op
from fmri_scale.kernels.windows import Windows

__all__ = ["prefix_scan", "scan"]


def scan(
    x_BNE: torch.Tensor,
    dt_BNE: torch.Tensor,
    A_ES: torch.Tensor,
    B_BNS: torch.Tensor,
    C_BNS: torch.Tensor,
    D_E: torch.Tensor,
    windows: Windows,
    h0_ES: torch.Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """Scan every window of every clip from the same start.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t and y_t = <h_t, C_t> + D x_t along window order.

    Parameters
    ----------
    x_BNE : Tensor
        Input after convolution and SiLU, `(B, N, E)`, fp32, bf16 or fp64 (which is computed in fp64).
    dt_BNE : Tensor
        Step sizes after softplus, `(B, N, E)`.
    A_ES : Tensor
        Decay rates, negative, `(E, S)`, fp32.
    B_BNS, C_BNS : Tensor
        Input and output vectors, `(B, N, S)`; may be slices of a wider tensor.
    D_E : Tensor
        Skip weights, `(E,)`.
    windows : Windows
        Geometry of the padded grid; `windows.num_tokens == N`.
    h0_ES : Tensor, optional
        State before the first token of every window, `(E, S)`; zeros if None.
    reverse : bool
        Walk each window from its last token to its first.
    backend : str
        `auto`, `torch`, `triton` or `mamba_ssm`.

    Returns
    -------
    Tensor
        y, `(B, N, E)` in the dtype of x. Gradients flow to every tensor argument.

    Raises
    ------
    ValueError
        When a shape does not fit the others.
    ConfigError
        When the backend cannot run.
    """
    _check(x_BNE, dt_BNE, A_ES, B_BNS, C_BNS, D_E, windows, h0_ES)
    return scan_op(
        x_BNE,
        dt_BNE,
        A_ES,
        B_BNS,
        C_BNS,
        D_E,
        h0_ES,
        list(windows.grid),
        list(windows.window),
        list(windows.shift),
        reverse,
        backend,
        windows.table,
    )


def prefix_scan(
    x_PE: torch.Tensor,
    dt_PE: torch.Tensor,
    A_ES: torch.Tensor,
    B_PS: torch.Tensor,
    C_PS: torch.Tensor,
    D_E: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scan P prompt tokens from a zero state, in plain torch with autograd.

    Returns
    -------
    y_PE, h_ES : Tensor
        Outputs `(P, E)` and the state after the last prompt token `(E, S)`, the `h0_ES` of `scan`.
    """
    h = torch.zeros_like(A_ES)
    outputs = []
    for x, dt, b, c in zip(x_PE, dt_PE, B_PS, C_PS, strict=True):
        h = torch.exp(dt[:, None] * A_ES) * h + (dt * x)[:, None] * b
        outputs.append((h * c).sum(-1) + D_E * x)
    return torch.stack(outputs), h


def _check(x, dt, A, B, C, D, windows, h0) -> None:
    if x.ndim != 3 or x.shape[1] != windows.num_tokens:
        raise ValueError(f"x is {tuple(x.shape)}: expected (B, {windows.num_tokens}, E) for a grid of {windows.grid}")
    batch, tokens, width = x.shape
    if A.ndim != 2 or A.shape[0] != width:
        raise ValueError(f"A is {tuple(A.shape)}: expected ({width}, states)")
    states = A.shape[1]
    expected = {"dt": (dt, (batch, tokens, width)), "D": (D, (width,))}
    expected |= {"B": (B, (batch, tokens, states)), "C": (C, (batch, tokens, states))}
    if h0 is not None:
        expected["h0"] = (h0, (width, states))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {shape}")
