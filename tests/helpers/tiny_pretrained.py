"""A released model as an object, with random weights and a small mask: for tests of what is done with one."""

import numpy as np
import torch

from fmri_scale.config import ModelConfig
from fmri_scale.release import Pretrained
from fmri_scale.release.preprocessing import Preprocessing
from sharding.prepare import PreprocessingSettings


def tiny_pretrained(
    mask: np.ndarray, normalisation: str = "voxel_z", gain: float = 8.0, seed: int = 0, frames: int = 4
) -> Pretrained:
    """Return a model of 24 x 24 x 24 voxels; `gain` scales its weights, so that it is far from linear."""
    config = ModelConfig(
        image_size=[24, 24, 24],
        num_frames=frames,
        patch_size=[6, 6, 6, 1],
        embed_dim=4,
        depths=[1, 1],
        window_size=[2, 2, 2, 2],
        first_window_size=[2, 2, 2, 2],
        state_dim=4,
    )
    model = Pretrained(config, "autoencoder")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and not name.endswith("A_log"):
                value.copy_(gain * 0.05 * torch.randn(value.shape, generator=random))
    model.preprocessing = Preprocessing.of(PreprocessingSettings(), normalisation, frames, mask)
    model.mask = mask
    model.identity = "0" * 64
    return model.eval()
