"""Gate and out-projection of a mixer in one operator: y * silu(z), mapped to the tokens' width.

Legend: tokens `[..., E]` in, `[..., C]` out.
"""

from torch import Tensor

from fmri_scale.kernels.gate.op import gate_linear_op

__all__ = ["gate_linear"]


def gate_linear(y: Tensor, z: Tensor, weight_CE: Tensor, past: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return `(y * silu(z)) @ weight.T`, or `past +` that.

    Parameters
    ----------
    y : Tensor
        What the scan gave, `(..., E)`, fp32, bf16 or fp64.
    z : Tensor
        The gate, of the same shape and dtype; may be a slice of a wider tensor.
    weight_CE : Tensor
        `(C, E)` in the dtype of y.
    past : Tensor, optional
        The tokens that the branch is added to, `(..., C)` in the dtype of y.
    backend : str
        `auto`, `torch` or `triton`; the Triton kernels take up to 128 channels out, wider ones run in torch there too.

    Returns
    -------
    Tensor
        `(..., C)` in the dtype of y. Gradients flow to every tensor; the product is made again for them.

    Raises
    ------
    ValueError
        When a shape does not fit the others.
    """
    if z.shape != y.shape:
        raise ValueError(f"z is {tuple(z.shape)}: expected {tuple(y.shape)}")
    if weight_CE.ndim != 2 or weight_CE.shape[1] != y.shape[-1]:
        raise ValueError(f"weight is {tuple(weight_CE.shape)}: expected (C, {y.shape[-1]})")
    if past is not None and tuple(past.shape) != (*y.shape[:-1], weight_CE.shape[0]):
        raise ValueError(f"past is {tuple(past.shape)}: expected {(*y.shape[:-1], weight_CE.shape[0])}")
    return gate_linear_op(y, z, weight_CE, past, backend)
