"""Decoder head and masked squared error against int8 codes in one operator; its gradients are made in the forward.

Legend: B clips, T frames, M positions, K those of a list, N = M*T (or K*T) tokens in natural order, P values of a
patch, C channels.
"""

import math

import torch
from torch import Tensor

from fmri_scale.kernels.clips import CodedClips, Hidden, check_patches
from fmri_scale.kernels.loss.op import hidden_values_op, masked_loss_op
from fmri_scale.kernels.windows import Axes

__all__ = ["hidden_values", "masked_loss"]


def masked_loss(
    clips: CodedClips,
    features_BNC: Tensor,
    weight_PC: Tensor,
    bias_P: Tensor,
    hidden: Hidden,
    brain_only: bool = True,
    backend: str = "auto",
    patches_K: Tensor | None = None,
) -> Tensor:
    """Score features @ weight.T + bias against the patches of the hidden tokens.

    The loss is the mean over clips of each clip's mean squared error on the values that count, so a batch may be
    split over micro-batches and ranks; a clip of which nothing counts adds 0.

    Parameters
    ----------
    clips : CodedClips
        The batch, with the normalisation as numbers.
    features_BNC : Tensor
        The decoder's output `(B, N, C)`, fp32, bf16 or fp64; only the hidden tokens' rows are read.
    weight_PC, bias_P : Tensor
        The head, in the dtype of the features; a patch's values raster (x, y, z).
    hidden : Hidden
        The tokens that are scored.
    brain_only : bool
        Count the brain's voxels alone; otherwise all voxels of hidden patches, outside ones too.
    backend : str
        `auto`, `torch` or `triton`.
    patches_K : Tensor, optional
        int32, the positions that have features, each once, N = K*T in that order; other hidden tokens do not count.
        None: all. `hidden` is that of the whole grid all the same.

    Returns
    -------
    Tensor
        Scalar, float32 (float64 for float64 features). Gradients flow to features, weight and bias, once.

    Raises
    ------
    ValueError
        When a shape or dtype does not fit the others.
    ConfigError
        When the backend cannot run.
    """
    clips.check()
    batch, width, values = clips.codes.shape[0], features_BNC.shape[-1], math.prod(clips.patch)
    hidden.check(batch, clips.grid)
    expected = {
        "features": (features_BNC, (batch, check_patches(patches_K, clips.grid) * clips.grid[3], width)),
        "weight": (weight_PC, (values, width)),
        "bias": (bias_P, (values,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {shape}")
        if tensor.dtype != features_BNC.dtype:
            raise ValueError(f"{name} is {tensor.dtype}: expected {features_BNC.dtype}, the features' dtype")
    wanted = torch.is_grad_enabled() and any(v.requires_grad for v in (features_BNC, weight_PC, bias_P))
    *tensors, image, patch = clips
    *draw, unit = hidden
    inputs = (features_BNC, weight_PC, bias_P, *tensors, *draw[:3], patches_K, *draw[3:])
    return masked_loss_op(*inputs, list(image), list(patch), list(unit), brain_only, wanted, backend)[0]


def hidden_values(values_M: Tensor, hidden: Hidden, batch: int, grid: Axes, backend: str = "auto") -> Tensor:
    """Sum a number per position over the hidden tokens of each clip; no mask is made on a GPU.

    Parameters
    ----------
    values_M : Tensor
        int32 `(M,)`, for instance 1 for every position, or how much brain its patch holds.
    hidden : Hidden
        The tokens that are counted.
    batch : int
        Clips.
    grid : (D, H, W, T)
        Tokens of a clip.
    backend : str
        `auto`, `torch` or `triton`.

    Returns
    -------
    Tensor
        int64 `(B,)`.

    Raises
    ------
    ValueError
        When a shape does not fit the others.
    """
    hidden.check(batch, grid)
    if values_M.dtype != torch.int32 or tuple(values_M.shape) != (math.prod(grid[:3]),):
        raise ValueError(
            f"values is {values_M.dtype} {tuple(values_M.shape)}: expected torch.int32 {(math.prod(grid[:3]),)}"
        )
    *draw, unit = hidden
    return hidden_values_op(values_M, *draw, list(unit), batch, list(grid), backend)
