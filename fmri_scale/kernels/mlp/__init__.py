"""Norm, map up, exact GELU, map down, add: the second half of a block in one operator that keeps its input alone.

Legend: tokens `[..., C]`, H hidden values.
"""

from torch import Tensor

from fmri_scale.kernels.mlp.op import norm_mlp_op

__all__ = ["norm_mlp"]


def norm_mlp(
    x: Tensor,
    gain_C: Tensor,
    shift_C: Tensor,
    up_HC: Tensor,
    up_bias_H: Tensor,
    down_CH: Tensor,
    down_bias_C: Tensor,
    eps: float = 1e-5,
    residual: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Return `x + down(gelu(up(norm(x))))`, or without `x +`.

    Parameters
    ----------
    x : Tensor
        Tokens, channels last, fp32, bf16 or fp64.
    gain_C, shift_C : Tensor
        The norm's, in the dtype of x.
    up_HC, up_bias_H, down_CH, down_bias_C : Tensor
        The maps', in the dtype of x.
    eps : float
        Added to the variance.
    residual : bool
        Whether x is added.
    backend : str
        `auto`, `torch` or `triton`; the Triton kernels take up to 128 channels, wider tokens run in torch there too.

    Returns
    -------
    Tensor
        Of the shape and dtype of x. Gradients flow to every tensor argument; the hidden layer is made again for them.

    Raises
    ------
    ValueError
        When a shape does not fit the others.
    """
    width, hidden = x.shape[-1], up_HC.shape[0]
    expected = {
        "gain": (gain_C, (width,)),
        "shift": (shift_C, (width,)),
        "up": (up_HC, (hidden, width)),
        "up_bias": (up_bias_H, (hidden,)),
        "down": (down_CH, (width, hidden)),
        "down_bias": (down_bias_C, (width,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {shape}")
    return norm_mlp_op(x, gain_C, shift_C, up_HC, up_bias_H, down_CH, down_bias_C, eps, residual, backend)
