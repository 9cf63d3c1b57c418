"""The batched mask as one operator, `fmri_scale::unit_mask`; it has no gradient."""

import torch
from torch import Tensor

from fmri_scale.kernels.backends import implementation


@torch.library.custom_op("fmri_scale::unit_mask", mutates_args=())
def unit_mask_op(epoch: Tensor, clip_ids: Tensor, seed: int, n: int, k: int, backend: str) -> Tensor:
    """Bool (B, n) on the device of clip_ids."""
    return implementation("mask", backend, clip_ids.device).unit_mask(seed, epoch, clip_ids, n, k)


@unit_mask_op.register_fake
def _(epoch, clip_ids, seed, n, k, backend):
    return clip_ids.new_empty(clip_ids.shape[0], n, dtype=torch.bool)
