"""Models small enough for a test: 24^3 voxels, 8^3 tokens a frame."""

from dataclasses import replace

import torch

from fmri_scale.config import MaskConfig, ModelConfig
from fmri_scale.models import TokenMask, draw_mask

TINY = ModelConfig(image_size=[24, 24, 24], num_frames=4, patch_size=[3, 3, 3, 1], embed_dim=6, depths=[2, 1])


def tiny(**changes) -> ModelConfig:
    """Return the tiny configuration with some keys changed."""
    return replace(TINY, **changes)


def clips(config: ModelConfig, batch: int = 1, frames: int | None = None, seed: int = 0, **kind) -> torch.Tensor:
    """Return random clips of a configuration."""
    shape = (batch, config.in_channels, *config.image_size, frames or config.num_frames)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **kind)


def drawn(config: ModelConfig, batch: int = 1, frames: int | None = None, seed: int = 0, **mask) -> TokenMask:
    """Return masks of clips 0, 1, ..., by default half of the tokens."""
    return draw_mask(MaskConfig(**mask), config, seed, 0, torch.arange(batch), "cpu", num_frames=frames)
