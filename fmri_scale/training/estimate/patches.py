"""How many patches a model with brain_tokens computes, before there is a corpus: those of the MNI152 mask."""

import torch

from fmri_scale.config import ModelConfig
from fmri_scale.data import reduced_mask
from fmri_scale.models.brain import stage_patches
from sharding.mask import brain_mask


def computed_patches(model: ModelConfig) -> list[int] | None:
    """Return the patches that are computed of each stage; None: all."""
    if not model.brain_tokens:
        return None
    mask = reduced_mask(torch.from_numpy(brain_mask().copy()), model.image_size)
    return [int(here.sum()) for here in stage_patches(mask, model)]
