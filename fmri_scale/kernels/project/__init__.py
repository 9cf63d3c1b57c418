"""Norm and in-projection of a mixer in one operator: tokens in, what is convolved and what gates out.

Legend: tokens `[..., C]` in, two halves `[..., E]` out.
"""

from torch import Tensor

from fmri_scale.kernels.project.op import norm_project_op

__all__ = ["norm_project"]


def norm_project(
    x: Tensor, gain_C: Tensor, shift_C: Tensor, weight_2EC: Tensor, eps: float = 1e-5, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the two halves of `norm(x) @ weight.T`, as two tensors: neither is copied out of the other's rows later.

    Parameters
    ----------
    x : Tensor
        Tokens, channels last, fp32, bf16 or fp64.
    gain_C, shift_C : Tensor
        The norm's, in the dtype of x.
    weight_2EC : Tensor
        `(2 E, C)` in the dtype of x.
    eps : float
        Added to the variance.
    backend : str
        `auto`, `torch` or `triton`; what the Triton kernels are too narrow for runs in torch there too.

    Returns
    -------
    tuple of Tensor
        Two `(..., E)` in the dtype of x. Gradients flow to the four tensors; the norm is made again for them.

    Raises
    ------
    ValueError
        When a shape does not fit the others.
    """
    width = x.shape[-1]
    if tuple(gain_C.shape) != (width,) or tuple(shift_C.shape) != (width,):
        raise ValueError(f"gain {tuple(gain_C.shape)} and shift {tuple(shift_C.shape)}: expected ({width},) both")
    if weight_2EC.ndim != 2 or weight_2EC.shape[1] != width or weight_2EC.shape[0] % 2:
        raise ValueError(f"weight is {tuple(weight_2EC.shape)}: expected (2 E, {width})")
    return norm_project_op(x, gain_C, shift_C, weight_2EC, eps, backend)
