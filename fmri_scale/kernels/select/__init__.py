"""What steers a mixer's scan: step sizes, B and C of every token, from what the convolution gave.

Legend: tokens `[..., E]`; R rank of dt, S states, M = R + 2 S.
"""

from torch import Tensor

from fmri_scale.kernels.select.op import select_op

__all__ = ["select"]


def select(
    mixed: Tensor, x_proj_ME: Tensor, dt_proj_ER: Tensor, dt_bias_E: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Map tokens to their selection, and its first R columns to step sizes.

    Parameters
    ----------
    mixed : Tensor
        What the convolution gave, `(..., E)`, fp32, bf16 or fp64.
    x_proj_ME, dt_proj_ER, dt_bias_E : Tensor
        The projections, in the dtype of the tokens.
    backend : str
        `auto`, `torch` or `triton`; what the Triton kernels do not take runs in torch there too.

    Returns
    -------
    dt, selection : Tensor
        Step sizes after softplus, `(..., E)`, and `(..., M)` with the columns dt before its projection, B, C; in the
        dtype of the tokens. Gradients flow to the four tensors; dt is made again for them.

    Raises
    ------
    ValueError
        When a shape does not fit the others.
    """
    width, rank = mixed.shape[-1], dt_proj_ER.shape[-1]
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "x_proj": (x_proj_ME, (x_proj_ME.shape[0], width)),
        "dt_proj": (dt_proj_ER, (width, rank)),
        "dt_bias": (dt_bias_E, (width,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {shape}")
    if x_proj_ME.shape[0] <= rank or (x_proj_ME.shape[0] - rank) % 2:
        raise ValueError(f"x_proj gives {x_proj_ME.shape[0]} columns: expected {rank} for dt and two of all states")
    return select_op(mixed, x_proj_ME, dt_proj_ER, dt_bias_E, backend)
