"""From int8 codes to tokens in one pass: dequantise, normalise, embed, replace what is hidden, add place and time.

Legend: B clips, T frames, M positions, K those of a list, N = M*T (or K*T) tokens in natural order, P values of a
patch, C channels, S slots.
"""

import math

from torch import Tensor

from fmri_scale.kernels.clips import ONE, CodedClips, Hidden, check_patches, normalise, voxel_lookup
from fmri_scale.kernels.embed.op import embed_op
from fmri_scale.kernels.windows import Axes

__all__ = ["CodedClips", "Hidden", "embed", "normalise", "voxel_lookup"]


def embed(
    clips: CodedClips,
    weight_CP: Tensor,
    bias_C: Tensor,
    mask_tokens_SC: Tensor,
    position_MC: Tensor,
    time_TC: Tensor,
    hidden: Hidden | None = None,
    slots: Axes = ONE,
    backend: str = "auto",
    patches_K: Tensor | None = None,
) -> Tensor:
    """Embed clips.

    A token is weight @ patch + bias or, where hidden, the mask token of its slot; then its position's and its
    frame's vector are added.

    Parameters
    ----------
    clips : CodedClips
        The batch, with the normalisation as numbers (`normalise`).
    weight_CP, bias_C : Tensor
        Patch embedding, fp32, bf16 or fp64; a patch's values raster (x, y, z).
    mask_tokens_SC : Tensor
        `(S, C)`, S the product of `slots`.
    position_MC, time_TC : Tensor
        Vectors of the positions and of the clip's frames.
    hidden : Hidden, optional
        Which tokens are hidden; their voxels are not read by the Triton kernels. None hides nothing.
    slots : (d, h, w, t)
        Window that the mask tokens fill, counted from the grid's corner; (1, 1, 1, 1) for one token everywhere.
    backend : str
        `auto`, `torch` or `triton`.
    patches_K : Tensor, optional
        int32, the positions that have tokens, each once; only these are embedded. None: all. `hidden`, `slots` and
        `position_MC` are those of the whole grid all the same.

    Returns
    -------
    Tensor
        `(B, N, C)` in the dtype of the weight, N = K*T in the order of a list. Gradients flow to the five parameters.

    Raises
    ------
    ValueError
        When a shape does not fit the others.
    ConfigError
        When the backend cannot run.
    """
    hidden = hidden or Hidden()
    clips.check()
    hidden.check(clips.codes.shape[0], clips.grid)
    check_patches(patches_K, clips.grid)
    width, frames = weight_CP.shape[0], clips.grid[3]
    expected = {
        "weight": (weight_CP, (width, math.prod(clips.patch))),
        "bias": (bias_C, (width,)),
        "mask_tokens": (mask_tokens_SC, (math.prod(slots), width)),
        "position": (position_MC, (math.prod(clips.grid[:3]), width)),
        "time": (time_TC, (frames, width)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {shape}")
    *tensors, image, patch = clips
    *draw, unit = hidden
    parameters = (weight_CP, bias_C, mask_tokens_SC, position_MC, time_TC)
    sizes = (list(image), list(patch), list(unit), list(slots))
    return embed_op(*parameters, *tensors, *draw[:3], patches_K, *draw[3:], *sizes, backend)
