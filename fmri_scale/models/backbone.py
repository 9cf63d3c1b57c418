"""The encoder: patches to tokens, then stages of shifted-window Mamba blocks, each half as fine as the one before.

`Backbone(config)(volume)` gives the latent map, `.features(volume)` its mean. No final norm (as published).
Shape suffixes: B clips, C input channels, XYZ voxels, T frames, DHW tokens along x, y, z, E width of a stage.
"""

import torch
from torch import Tensor, nn

from fmri_scale.config import ModelConfig
from fmri_scale.models import brain
from fmri_scale.models.block import Block, run_blocks
from fmri_scale.models.embed import PatchEmbed, PositionalEmbedding, patchify
from fmri_scale.models.resample import PatchMerge
from fmri_scale.models.shapes import StageShape, drop_path_rates, encoder_stages, patch_values


class EncoderStage(nn.Module):
    """Position, blocks, and the merging that leads to the next stage (absent in the last)."""

    def __init__(self, config: ModelConfig, shape: StageShape, first_block: int, drop_path: list[float], last: bool):
        super().__init__()
        self.recompute = config.checkpoint_blocks
        self.position = PositionalEmbedding(shape.grid, config.num_frames, shape.width)
        self.blocks = nn.ModuleList(
            Block(shape, config, shape.shifted and i % 2 == 1, first_block + i, rate, encoder=True)
            for i, rate in enumerate(drop_path)
        )
        self.merge = None if last else PatchMerge(shape.width, config.channel_multiplier)

    def forward(self, x_BDHWTE: Tensor, keys_B: Tensor | None = None, placed: bool = False) -> Tensor:
        """Return the next stage's tokens; `placed` ones have their position already."""
        x_BDHWTE = x_BDHWTE if placed else self.position(x_BDHWTE)
        x_BDHWTE = run_blocks(self.blocks, x_BDHWTE, keys_B, self.recompute)
        return x_BDHWTE if self.merge is None else self.merge(x_BDHWTE)

    def set_patches(self, active_DHW: Tensor, coarse_DHW: Tensor | None) -> None:
        """Have tokens at these patches alone, and at those of the next stage."""
        device = self.position.space.device
        self.position.places = brain.places(active_DHW).to(device)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.set_patches(active_DHW)
        if self.merge is not None and coarse_DHW is not None:
            self.merge.child_list = brain.children(active_DHW, coarse_DHW).to(device)


class Backbone(nn.Module):
    """The encoder of a configuration; its weights mean nothing until `init_weights` or a state dict sets them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        shapes = encoder_stages(config)
        self.patch_embed = PatchEmbed(patch_values(config), config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.stages = nn.ModuleList(
            EncoderStage(config, shape, sum(config.depths[:i]), rates, last=i == len(shapes) - 1)
            for i, (shape, rates) in enumerate(zip(shapes, drop_path_rates(config), strict=True))
        )

    def forward(self, volume_BCXYZT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Encode clips.

        Parameters
        ----------
        volume_BCXYZT : float clips with the configured channels and image size, any number of frames.
        keys_B : int64 random keys of the clips (`draws.clip_keys`); needed in training where drop_path is on.

        Returns
        -------
        latent `[B, E, D, H, W, T]`, E and D, H, W of the last stage; with model.brain_tokens `[B, E, M, 1, 1, T]`, its
        M patches that hold brain in raster order. Others have no features.
        """
        self.check(volume_BCXYZT)
        tokens = self.patch_embed(self.patches(volume_BCXYZT))
        return self.encode(self.dropout(tokens), keys_B).permute(0, 5, 1, 2, 3, 4)

    def features(self, volume_BCXYZT: Tensor) -> Tensor:
        """Return the mean over all tokens of the latent map (with model.brain_tokens those of the brain), `[B, E]`."""
        return self(volume_BCXYZT).flatten(2).mean(-1)

    def set_brain(self, brain_XYZ: Tensor) -> None:
        """Say which voxels are brain, bool `[X, Y, Z]`: with model.brain_tokens patches that hold none are left out.

        The lists that follow from it move with the model and are no part of its state dict.

        Raises
        ------
        ValueError : model.brain_tokens is off, or the brain does not fit the configuration.
        """
        if not self.config.brain_tokens:
            raise ValueError("set_brain: has a meaning with model.brain_tokens=true alone")
        active = brain.stage_patches(brain_XYZ, self.config)
        for stage, fine, coarse in zip(self.stages, active, [*active[1:], None], strict=True):
            assert isinstance(stage, EncoderStage)
            stage.set_patches(fine, coarse)

    @property
    def places(self) -> Tensor | None:
        """Positions of the patches that are computed, int64 `[M]`; None: of all."""
        return self.first_position.places

    @property
    def num_patches(self) -> list[int] | None:
        """How many patches are computed of each stage; None: all."""
        found = [stage.position.places for stage in self.stages if isinstance(stage, EncoderStage)]
        return None if self.places is None else [len(places) for places in found if places is not None]

    def patches(self, volume_BCXYZT: Tensor) -> Tensor:
        """Return the patches of clips that are computed, `[B, D, H, W, T, P]` or `[B, M, 1, 1, T, P]`."""
        return brain.take(patchify(volume_BCXYZT, self.config.patch_size), self.places, 1)

    def encode(self, tokens_BDHWTE: Tensor, keys_B: Tensor | None = None, placed: bool = False) -> Tensor:
        """Return the latent map channels last, `[B, D, H, W, T, E]`, of embedded (and perhaps masked) tokens.

        Everything is in the tokens' dtype. `placed` tokens have the first stage's position already.
        """
        if self.config.brain_tokens and self.places is None:
            raise ValueError("model.brain_tokens=true: say first which voxels are brain, with set_brain")
        with torch.autocast(tokens_BDHWTE.device.type, enabled=False):
            for stage in self.stages:
                tokens_BDHWTE = stage(tokens_BDHWTE, keys_B, placed)
                placed = False
        return tokens_BDHWTE

    @property
    def first_position(self) -> PositionalEmbedding:
        """What tells the embedded tokens where and when they are."""
        stage = self.stages[0]
        assert isinstance(stage, EncoderStage)
        return stage.position

    def check(self, volume_BCXYZT: Tensor) -> None:
        """Raise ValueError unless the clip fits the configuration."""
        config = self.config
        expected = (config.in_channels, *config.image_size)
        if volume_BCXYZT.ndim != 6 or tuple(volume_BCXYZT.shape[1:5]) != expected:
            raise ValueError(
                f"volume of shape {tuple(volume_BCXYZT.shape)}: expected [clips, channels, x, y, z, frames] with "
                f"channels and voxels {expected}"
            )
