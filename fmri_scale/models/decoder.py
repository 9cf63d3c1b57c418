"""The decoder of the masked autoencoder: the encoder's stages mirrored, without skips or positions, then a head.

In: the latent map, channels last. Out: features of every patch, of which the head predicts the patch's values.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmri_scale.config import ModelConfig
from fmri_scale.models import brain
from fmri_scale.models.block import Block, run_blocks
from fmri_scale.models.lean import cast_like
from fmri_scale.models.resample import PatchExpand
from fmri_scale.models.shapes import StageShape, decoder_stages, drop_path_rates, patch_values


class DecoderStage(nn.Module):
    """Expansion to the next finer grid, then blocks on it."""

    def __init__(self, config: ModelConfig, shape: StageShape, first_block: int, drop_path: list[float]) -> None:
        super().__init__()
        self.recompute = config.checkpoint_blocks
        self.expand = PatchExpand(shape.width * config.channel_multiplier, config.channel_multiplier)
        self.blocks = nn.ModuleList(
            Block(shape, config, i % 2 == 1, first_block + i, rate, encoder=False) for i, rate in enumerate(drop_path)
        )

    def forward(self, x_BDHWTC: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Return tokens of a grid twice as fine."""
        return run_blocks(self.blocks, self.expand(x_BDHWTC), keys_B, self.recompute)

    def set_patches(self, active_DHW: Tensor, coarse_DHW: Tensor) -> None:
        """Have tokens at these patches alone, made of those of the stage before."""
        self.expand.octants = brain.octants(active_DHW, coarse_DHW).to(self.expand.proj.weight.device)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.set_patches(active_DHW)


class Decoder(nn.Module):
    """Stages from coarse to fine and a norm; `head` maps features to the values of a patch, where they are wanted."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rates = drop_path_rates(config)[-2::-1]
        number = sum(config.depths)
        stages = []
        for shape, drop_path in zip(decoder_stages(config), rates, strict=True):
            stages.append(DecoderStage(config, shape, number, drop_path))
            number += shape.depth
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.head = nn.Linear(config.embed_dim, patch_values(config))

    def set_patches(self, active: list[Tensor]) -> None:
        """Have tokens at these patches of the encoder's stages alone (`brain.stage_patches`)."""
        for stage, fine, coarse in zip(self.stages, active[-2::-1], active[:0:-1], strict=True):
            assert isinstance(stage, DecoderStage)
            stage.set_patches(fine, coarse)

    def forward(self, latent_BDHWTC: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Return the features `[B, D, H, W, T, C]` that `head` takes; its output is ordered as `embed.patchify`'s.

        Everything is in the dtype of the latent map.
        """
        with torch.autocast(latent_BDHWTC.device.type, enabled=False):
            for stage in self.stages:
                latent_BDHWTC = stage(latent_BDHWTC, keys_B)
            gain, shift = cast_like(latent_BDHWTC, self.norm.weight, self.norm.bias)
            return F.layer_norm(latent_BDHWTC, gain.shape, gain, shift, self.norm.eps)
