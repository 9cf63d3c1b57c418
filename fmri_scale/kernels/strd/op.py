"""The scores as one operator, `fmri_scale::strd_scores`; it has no gradient."""

from typing import Sequence  # noqa: UP035 - torch before 2.7 reads operators' types from typing alone

import torch
from torch import Tensor

from fmri_scale.kernels.backends import implementation


@torch.library.custom_op("fmri_scale::strd_scores", mutates_args=())
def strd_scores_op(
    h: Tensor, window: Sequence[int], l_spat: int, l_temp: int, backend: str, real: Tensor | None = None
) -> Tensor:
    """Scores (windows, L) in the dtype of h."""
    return implementation("strd", backend, h.device).scores(h, tuple(window), l_spat, l_temp, real)


@strd_scores_op.register_fake
def _(h, window, l_spat, l_temp, backend, real=None):
    return h.new_empty(h.shape[0], h.shape[1])
