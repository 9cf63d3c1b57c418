"""The masked autoencoder: hide tokens, encode all of them, decode, score the hidden patches.

`MaskedAutoencoder(config)(volume, mask)` returns loss and prediction. Mask tokens pass through the encoder (as
published), so masking saves no computation. Shape suffixes: B clips, C channels, XYZ voxels, T frames, DHW tokens
along x, y, z, N = D*H*W*T tokens, M = D*H*W positions, P values of a patch, E width.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmri_scale.config import ModelConfig
from fmri_scale.models.backbone import Backbone
from fmri_scale.models.decoder import Decoder
from fmri_scale.models.embed import patchify, unpatchify
from fmri_scale.models.init import init_weights
from fmri_scale.models.loss import masked_loss
from fmri_scale.models.masking import TokenMask, masked_fractions
from fmri_scale.models.shapes import token_grid


class MAEOutput(NamedTuple):
    """What a forward pass returns.

    Attributes
    ----------
    loss : scalar, float32: mean over clips of each clip's mean squared error on its hidden voxels.
    prediction : predicted values of every patch `[B, N, P]`, or None where they were not asked for;
        `unpatchify` makes a volume of them.
    latent : the encoder's map, channels last `[B, D, H, W, T, E]`.
    metrics : scalars without gradient: `masked_fraction` and, with a brain, `masked_fraction_brain`.
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
        self.window_size = tuple(window)
        self.token = nn.Parameter(torch.zeros(width))
        self.window = nn.Parameter(torch.zeros(math.prod(window), width))
        self.region = nn.Parameter(torch.zeros(width))

    def forward(self, tokens_BDHWTE: Tensor, mask: TokenMask) -> Tensor:
        """Return the tokens with the hidden ones replaced."""
        stand_in = self._stand_in(tokens_BDHWTE.shape[1:5], mask.strategy)
        idle = 0.0 * (self.token.sum() + self.window.sum() + self.region.sum())
        return torch.where(mask.hidden.view(*tokens_BDHWTE.shape[:5], 1), stand_in + idle, tokens_BDHWTE)

    def _stand_in(self, grid: Sequence[int], strategy: str) -> Tensor:
        if strategy == "window":
            slots = _window_slots(tuple(grid), self.window_size, self.window.device)
            return self.window[slots]
        return self.region if strategy == "region" else self.token


class MaskedAutoencoder(nn.Module):
    """Backbone, mask tokens and decoder of a configuration, with weights drawn from `seed`."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.mask_tokens = MaskTokens(config.window_size, config.embed_dim)
        self.decoder = Decoder(config)
        init_weights(self, seed)

    def forward(
        self,
        volume_BCXYZT: Tensor,
        mask: TokenMask,
        brain_XYZ: Tensor | None = None,
        predict: bool | None = None,
    ) -> MAEOutput:
        """Reconstruct clips of which part is hidden.

        Parameters
        ----------
        volume_BCXYZT : float clips of any number of frames.
        mask : hidden tokens of these clips, `masking.draw_mask`.
        brain_XYZ : bool; only these voxels are scored. None scores all voxels of hidden patches (as published).
        predict : return the values of all patches, not only score the hidden ones. None: where gradients are off.
        """
        self.backbone.check(volume_BCXYZT)
        patches = patchify(volume_BCXYZT, self.config.patch_size)
        if mask.hidden.shape != (len(patches), math.prod(patches.shape[1:5])):
            raise ValueError(f"mask of {tuple(mask.hidden.shape)} for clips of tokens {tuple(patches.shape[:5])}")
        tokens = self.mask_tokens(self.backbone.patch_embed(patches), mask)
        latent = self.backbone.encode(tokens, mask.keys)
        features_BNE = self.decoder(latent, mask.keys).flatten(1, 4)
        brain_MP = None if brain_XYZ is None else self.patchify_brain(brain_XYZ)
        head = self.decoder.head
        loss = masked_loss(head, features_BNE, patches.flatten(1, 4), mask.hidden, brain_MP)
        wanted = not torch.is_grad_enabled() if predict is None else predict
        metrics = masked_fractions(mask, None if brain_MP is None else brain_MP.sum(-1))
        return MAEOutput(loss, head(features_BNE) if wanted else None, latent, metrics)

    def patchify_brain(self, brain_XYZ: Tensor) -> Tensor:
        """Return the brain mask as 0 and 1 by position and patch value, float32 `[M, P]`."""
        volume = brain_XYZ.float().expand(1, self.config.in_channels, *brain_XYZ.shape).unsqueeze(-1)
        return patchify(volume, self.config.patch_size).flatten(0, 4)

    def unpatchify(self, patches_BNP: Tensor) -> Tensor:
        """Return `[B, C, X, Y, Z, T]` of patches in natural order, for instance of `MAEOutput.prediction`."""
        b, n, p = patches_BNP.shape
        grid = token_grid(self.config)
        return unpatchify(patches_BNP.view(b, *grid, n // math.prod(grid), p), self.config.patch_size)


@functools.lru_cache(maxsize=16)
def _window_slots(grid: tuple[int, ...], window: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the place of each token in its (unshifted) window, int64 of the grid's shape, t fastest."""
    slot = torch.zeros((), dtype=torch.int64)
    for n, w in zip(grid, window, strict=True):
        slot = slot.unsqueeze(-1) * w + torch.arange(n) % w
    return slot.to(device)
