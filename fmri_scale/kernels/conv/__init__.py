"""Causal depthwise convolution and SiLU inside shifted windows, read and written in natural token order.

Legend: B clips, N = D*H*W*T tokens in natural order, E channels, K taps.
"""

import torch

from fmri_scale.kernels.conv.op import conv_silu_op
from fmri_scale.kernels.windows import Windows

__all__ = ["conv_silu"]


def conv_silu(
    x_BNE: torch.Tensor,
    weight_EK: torch.Tensor,
    bias_E: torch.Tensor,
    windows: Windows,
    prefix_KE: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Convolve each channel along window order with the K - 1 tokens before it, add the bias, apply SiLU.

    Parameters
    ----------
    x_BNE : Tensor
        `(B, N, E)`, fp32, bf16 or fp64; may be a slice of a wider tensor.
    weight_EK : Tensor
        Taps, oldest token first, `(E, K)`.
    bias_E : Tensor
        `(E,)`.
    windows : Windows
        Geometry of the padded grid; `windows.num_tokens == N`.
    prefix_KE : Tensor, optional
        Raw inputs before the first token of every window, oldest first, `(K - 1, E)`; zeros if None.
    backend : str
        `auto`, `torch` or `triton`.

    Returns
    -------
    Tensor
        `(B, N, E)` in the dtype of x. Gradients flow to every tensor argument.

    Raises
    ------
    ValueError
        When a shape does not fit the others.
    """
    if x_BNE.ndim != 3 or x_BNE.shape[1] != windows.num_tokens:
        raise ValueError(f"x is {tuple(x_BNE.shape)}: expected (B, {windows.num_tokens}, E) for {windows.grid} tokens")
    width = x_BNE.shape[2]
    if weight_EK.ndim != 2 or weight_EK.shape[0] != width or tuple(bias_E.shape) != (width,):
        raise ValueError(
            f"weight {tuple(weight_EK.shape)} and bias {tuple(bias_E.shape)}: expected ({width}, K), ({width},)"
        )
    if prefix_KE is not None and tuple(prefix_KE.shape) != (weight_EK.shape[1] - 1, width):
        raise ValueError(f"prefix is {tuple(prefix_KE.shape)}: expected {(weight_EK.shape[1] - 1, width)}")
    geometry = (list(windows.grid), list(windows.window), list(windows.shift))
    return conv_silu_op(x_BNE, weight_EK, bias_E, prefix_KE, *geometry, backend, windows.table)
