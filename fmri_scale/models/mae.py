"""The masked autoencoder: hide tokens, encode all of them, decode, score the hidden patches.

`MaskedAutoencoder(config)(clips, mask)` returns loss and prediction, for clips as volumes or as codes. Mask tokens
pass through the encoder (as published), so masking saves no computation. With model.brain_tokens patches without brain
are neither computed nor scored (brain.py). Shape suffixes: B clips, C channels, XYZ
voxels, T frames, DHW tokens along x, y, z, N = D*H*W*T tokens, M = D*H*W positions, S slots of a window, P values of
a patch, E width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmri_scale.config import LossConfig, ModelConfig
from fmri_scale.kernels.clips import ONE, CodedClips, brain_values, slot_of_token
from fmri_scale.kernels.embed import embed
from fmri_scale.kernels.loss import masked_loss as coded_loss
from fmri_scale.kernels.windows import Axes
from fmri_scale.models.backbone import Backbone
from fmri_scale.models.brain import spread, stage_patches, take
from fmri_scale.models.decoder import Decoder
from fmri_scale.models.embed import patchify, product_dtype, unpatchify
from fmri_scale.models.init import init_weights
from fmri_scale.models.loss import PLAIN, masked_loss, patch_moments
from fmri_scale.models.masking import TokenMask, masked_fractions
from fmri_scale.models.shapes import token_grid
from fmri_scale.models.strd import drop_counts


class MAEOutput(NamedTuple):
    """What a forward pass returns.

    Attributes
    ----------
    loss : scalar, float32: mean over clips of each clip's (weighted) mean squared error on its hidden voxels.
    prediction : predicted values of every patch `[B, N, P]`, or None where they were not asked for;
        `unpatchify` makes a volume of them. 0 for patches that are not computed.
    latent : the encoder's map, channels last `[B, D, H, W, T, E]` (with model.brain_tokens `[B, M, 1, 1, T, E]`).
    metrics : without gradient: scalars `masked_fraction` (of tokens that are computed) and, with a brain,
        `masked_fraction_brain`; in training with redundancy dropout `strd_counts` (`strd.drop_counts`).
    """

    loss: Tensor
    prediction: Tensor | None
    latent: Tensor
    metrics: dict[str, Tensor]


class MaskTokens(nn.Module):
    """The learnt vectors that stand for hidden tokens: one for tokens and tubes, one per window slot, one for regions.

    All three exist whatever is hidden, because published weights hold all three. Those not in use take part with
    weight zero: every parameter then has a gradient on every rank, as sharded optimizers like it.
    """

    def __init__(self, window: Sequence[int], width: int) -> None:
        super().__init__()
        d, h, w, t = window
        self.window_size: Axes = (d, h, w, t)
        self.token = nn.Parameter(torch.zeros(width))
        self.window = nn.Parameter(torch.zeros(math.prod(window), width))
        self.region = nn.Parameter(torch.zeros(width))

    def forward(self, tokens_BDHWTE: Tensor, mask: TokenMask, places_M: Tensor | None = None) -> Tensor:
        """Return the tokens, those of `places_M` or all, with the hidden ones replaced."""
        table_SE, slots = self.table(mask.strategy)
        stand_in_NE = table_SE[slot_of_token(mask.grid, slots, table_SE.device)]
        stand_in = take(stand_in_NE.view(*mask.grid, -1).to(tokens_BDHWTE.dtype), places_M, 0)
        hidden = take(mask.hidden.view(-1, *mask.grid, 1), places_M, 1)
        return torch.where(hidden, stand_in, tokens_BDHWTE)

    def table(self, strategy: str) -> tuple[Tensor, Axes]:
        """Return the vectors that stand in `[S, E]`, and the window whose slots they fill from the grid's corner."""
        idle = 0.0 * (self.token.sum() + self.window.sum() + self.region.sum())
        if strategy == "window":
            return self.window + idle, self.window_size
        return (self.region if strategy == "region" else self.token).unsqueeze(0) + idle, ONE


class MaskedAutoencoder(nn.Module):
    """Backbone, mask tokens and decoder of a configuration, with weights drawn from `seed`."""

    def __init__(self, config: ModelConfig, seed: int = 0, loss: LossConfig = PLAIN) -> None:
        super().__init__()
        self.config = config
        self.loss = loss
        self.backbone = Backbone(config)
        self.mask_tokens = MaskTokens(config.window_size, config.embed_dim)
        self.decoder = Decoder(config)
        init_weights(self, seed)

    def set_brain(self, brain_XYZ: Tensor) -> None:
        """Say which voxels are brain, see `Backbone.set_brain`."""
        self.backbone.set_brain(brain_XYZ)
        self.decoder.set_patches(stage_patches(brain_XYZ, self.config))

    @property
    def computed(self) -> Tensor:
        """Which positions have tokens, int32 `[M]`, 1 or 0."""
        count, places = math.prod(token_grid(self.config)), self.backbone.places
        if places is None:
            return torch.ones(count, dtype=torch.int32, device=self.decoder.head.weight.device)
        return torch.zeros(count, dtype=torch.int32, device=places.device).index_fill_(0, places, 1)

    def forward(
        self,
        clips: Tensor | CodedClips,
        mask: TokenMask,
        brain: Tensor | bool | None = None,
        predict: bool | None = None,
    ) -> MAEOutput:
        """Reconstruct clips of which part is hidden.

        Parameters
        ----------
        clips : float volumes `[B, C, X, Y, Z, T]` or int8 codes of the brain's voxels; any number of frames. Both
            give the same, but of codes neither a volume nor a prediction of it is ever made.
        mask : hidden tokens of these clips, `masking.draw_mask`.
        brain : what is scored. Volumes: bool `[X, Y, Z]`, or the weight of each voxel; codes: True for the voxels
            they hold. None or False scores all voxels of hidden patches (as published).
        predict : return the values of all patches, not only score the hidden ones. None: of volumes where gradients
            are off, of codes never.

        Raises
        ------
        ValueError : clips, mask and brain do not fit each other or the configuration.
        """
        if isinstance(clips, CodedClips):
            if isinstance(brain, Tensor):
                raise ValueError("a brain is given with codes: expected True, which scores the voxels that they hold")
            return self._from_codes(clips, mask, bool(brain), bool(predict))
        if brain is True:
            raise ValueError("brain=True is given with volumes: expected the voxels to score, bool [x, y, z]")
        wanted = not torch.is_grad_enabled() if predict is None else predict
        return self._from_volume(clips, mask, brain if isinstance(brain, Tensor) else None, wanted)

    def _from_volume(
        self, volume_BCXYZT: Tensor, mask: TokenMask, brain_XYZ: Tensor | None, predict: bool
    ) -> MAEOutput:
        self.backbone.check(volume_BCXYZT)
        patches, places = self.backbone.patches(volume_BCXYZT), self.backbone.places
        self._check(mask, len(patches), patches.shape[-2])
        tokens = self.mask_tokens(self.backbone.patch_embed(patches), mask, places)
        latent = self.backbone.encode(tokens, mask.keys)
        features_BNE = self.decoder(latent, mask.keys).flatten(1, 4)
        whole_MP = None if brain_XYZ is None else self.patchify_brain(brain_XYZ)
        brain_MP = whole_MP if whole_MP is None or places is None else whole_MP.index_select(0, places)
        hidden_BN = take(mask.hidden.view(-1, *mask.grid), places, 1).flatten(1)
        loss = masked_loss(self._head, features_BNE, patches.flatten(1, 4), hidden_BN, brain_MP, self.loss)
        output = self._output(loss, features_BNE, latent, mask, None if whole_MP is None else whole_MP.sum(-1), predict)
        if output.prediction is None:
            return output
        prediction = output.prediction
        if self.loss.patch_norm:
            prediction = self._restore(prediction, patches.flatten(1, 4), patches.shape[-2], brain_MP)
        return output._replace(prediction=self._everywhere(prediction))

    def _everywhere(self, tokens_BNE: Tensor) -> Tensor:
        """Return tokens of all positions, zeros for those that are not computed."""
        places = self.backbone.places
        return tokens_BNE if places is None else spread(tokens_BNE, places, math.prod(token_grid(self.config)))

    def _restore(self, prediction_BNP: Tensor, patches_BNP: Tensor, frames: int, brain_MP: Tensor | None) -> Tensor:
        """Give predictions of normalised patches the level and contrast of the true ones, to be looked at."""
        weight_NP = None if brain_MP is None else brain_MP.repeat_interleave(frames, 0)
        mean, sd = patch_moments(patches_BNP, weight_NP)
        return prediction_BNP * sd.to(prediction_BNP.dtype) + mean.to(prediction_BNP.dtype)

    def _from_codes(self, clips: CodedClips, mask: TokenMask, brain_only: bool, predict: bool) -> MAEOutput:
        config = self.config
        if self.loss != PLAIN:
            raise ValueError("codes are scored by the plain loss alone: decode them to volumes for other losses")
        d, h, w, frames = clips.grid
        image, patch = tuple(config.image_size), tuple(config.patch_size[:3])
        if (clips.image, clips.patch, 1) != (image, patch, config.in_channels):
            raise ValueError(
                f"codes of one channel, image {clips.image}, patches {clips.patch}: expected {config.in_channels}, "
                f"{image} and {patch}"
            )
        self._check(mask, len(clips.codes), frames)
        linear, (table_SE, slots) = self.backbone.patch_embed, self.mask_tokens.table(mask.strategy)
        dtype = product_dtype(linear.weight)
        space_ME, time_TE = self.backbone.first_position.vectors(frames)
        parameters = (linear.weight.to(dtype), linear.bias, table_SE, space_ME, time_TE)
        places, shape = self.backbone.places, (d, h, w, frames)
        patches = None if places is None else places.int()  # what is not computed is not scored either
        shape = shape if patches is None else (len(patches), 1, 1, frames)
        chosen: dict[str, Any] = {"hidden": mask.tokens, "backend": config.backend, "patches_K": patches}
        tokens = embed(clips, *parameters, slots=slots, **chosen).unflatten(1, shape)
        latent = self.backbone.encode(tokens, mask.keys, placed=True)
        features_BNE = self.decoder(latent, mask.keys).flatten(1, 4)
        head = (self.decoder.head.weight.to(dtype), self.decoder.head.bias.to(dtype))
        loss = coded_loss(clips, features_BNE, *head, brain_only=brain_only, **chosen)
        counts_M = brain_values(clips) if brain_only else None
        output = self._output(loss, features_BNE, latent, mask, counts_M, predict)
        if output.prediction is None:
            return output
        return output._replace(prediction=self._everywhere(output.prediction))

    def _check(self, mask: TokenMask, clips: int, frames: int) -> None:
        """Raise ValueError unless the mask was drawn for clips of these tokens."""
        grid = (*token_grid(self.config), frames)
        if (len(mask.keys), mask.grid) != (clips, grid):
            raise ValueError(f"mask of {len(mask.keys)} clips of tokens {mask.grid}: expected {clips} of {grid}")

    def _head(self, features: Tensor) -> Tensor:
        head = self.decoder.head
        return F.linear(features, head.weight.to(features.dtype), head.bias.to(features.dtype))

    def _output(
        self, loss: Tensor, features: Tensor, latent: Tensor, mask: TokenMask, counts_M: Tensor | None, predict: bool
    ) -> MAEOutput:
        metrics = masked_fractions(mask, counts_M, self.config.backend, self.computed)
        if (dropped := drop_counts(self.backbone)) is not None:
            metrics["strd_counts"] = dropped
        return MAEOutput(loss, self._head(features) if predict else None, latent, metrics)

    def patchify_brain(self, brain_XYZ: Tensor) -> Tensor:
        """Return the brain mask as 0 and 1 (or voxels' weights) by position and patch value, float32 `[M, P]`."""
        volume = brain_XYZ.float().expand(1, self.config.in_channels, *brain_XYZ.shape).unsqueeze(-1)
        return patchify(volume, self.config.patch_size).flatten(0, 4)

    def unpatchify(self, patches_BNP: Tensor) -> Tensor:
        """Return `[B, C, X, Y, Z, T]` of patches in natural order, for instance of `MAEOutput.prediction`."""
        b, n, p = patches_BNP.shape
        grid = token_grid(self.config)
        return unpatchify(patches_BNP.view(b, *grid, n // math.prod(grid), p), self.config.patch_size)
