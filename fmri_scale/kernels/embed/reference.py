"""The embedding by definition: every patch's values, a linear map, mask tokens where hidden, positions, frames."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmri_scale.kernels.autodiff import gradients
from fmri_scale.kernels.clips import (
    CodedClips,
    Hidden,
    hidden_tokens,
    patch_places,
    patch_values,
    pick_tokens,
    slot_of_token,
)
from fmri_scale.kernels.windows import Axes


def forward(
    clips: CodedClips,
    weight_CP: Tensor,
    bias_C: Tensor,
    mask_tokens_SC: Tensor,
    position_MC: Tensor,
    time_TC: Tensor,
    hidden: Hidden,
    slots: Axes,
    patches_K: Tensor | None = None,
) -> Tensor:
    """Shapes and meaning as `fmri_scale.kernels.embed.embed`."""
    batch, device = clips.codes.shape[0], clips.codes.device
    exact = torch.promote_types(weight_CP.dtype, torch.float32)
    places = patch_places(clips)
    patches_BTMP = torch.stack([patch_values(clips, b, places, exact) for b in range(batch)])
    tokens_BMTC = F.linear(patches_BTMP.transpose(1, 2).to(weight_CP.dtype), weight_CP, bias_C)
    tokens_BNC = tokens_BMTC.reshape(batch, -1, weight_CP.shape[0])
    stand_in_NC = mask_tokens_SC[slot_of_token(clips.grid, slots, device)]
    tokens_BNC = torch.where(hidden_tokens(hidden, batch, clips.grid, device)[..., None], stand_in_NC, tokens_BNC)
    return pick_tokens(tokens_BNC + (position_MC[:, None] + time_TC).flatten(0, 1), patches_K, clips.grid[3])


def backward(
    dy_BNC: Tensor,
    clips: CodedClips,
    weight_CP: Tensor,
    bias_C: Tensor,
    mask_tokens_SC: Tensor,
    position_MC: Tensor,
    time_TC: Tensor,
    hidden: Hidden,
    slots: Axes,
    patches_K: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of the five parameters by autograd."""
    parameters = (weight_CP, bias_C, mask_tokens_SC, position_MC, time_TC)
    return gradients(lambda w, b, m, p, t: forward(clips, w, b, m, p, t, hidden, slots, patches_K), parameters, dy_BNC)
