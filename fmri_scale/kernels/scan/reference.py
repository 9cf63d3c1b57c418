"""The selective scan by definition: one step a token, plain torch, any floating dtype, gradients by autograd.

h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,   y_t = <h_t, C_t> + D x_t      (Gu & Dao 2023, Mamba, eq. 2 and 3.2,
with their simplified discretisation of B), walked inside each shifted window, every window starting from h0.
Slow and memory-hungry on purpose: it is what all other forms are tested against.

Legend: B clips, N tokens, E channels, S states, W windows (of all clips), L tokens of a window.
"""

import torch

from fmri_scale.kernels.autodiff import gradients
from fmri_scale.kernels.windows import Windows, scatter


def forward(
    x_BNE: torch.Tensor,
    dt_BNE: torch.Tensor,
    A_ES: torch.Tensor,
    B_BNS: torch.Tensor,
    C_BNS: torch.Tensor,
    D_E: torch.Tensor,
    windows: Windows,
    h0_ES: torch.Tensor | None = None,
    reverse: bool = False,
) -> torch.Tensor:
    """Scan every window token by token; shapes and meaning as `fmri_scale.kernels.scan.scan`."""
    order = windows.order(x_BNE.device, reverse)
    x, dt, Bs, Cs = (v[:, order].flatten(0, 1) for v in (x_BNE, dt_BNE, B_BNS, C_BNS))
    h = torch.zeros_like(A_ES) if h0_ES is None else h0_ES
    h = h.expand(x.shape[0], *A_ES.shape)
    steps = []
    for t in range(windows.length):
        h = torch.exp(dt[:, t, :, None] * A_ES) * h + (dt[:, t] * x[:, t])[..., None] * Bs[:, t, None]
        steps.append((h * Cs[:, t, None]).sum(-1) + D_E * x[:, t])
    return scatter(torch.stack(steps, 1), order, x_BNE)


def backward(dy_BNE: torch.Tensor, *inputs) -> tuple[torch.Tensor, ...]:
    """Gradients of x, dt, A, B, C, D and h0 by autograd; `inputs` are those of `forward`."""
    *tensors, windows, h0, reverse = inputs
    start = torch.zeros_like(tensors[2]) if h0 is None else h0

    def function(x, dt, A, B, C, D, h0):
        return forward(x, dt, A, B, C, D, windows, h0, reverse)

    return gradients(function, (*tensors, start), dy_BNE)
