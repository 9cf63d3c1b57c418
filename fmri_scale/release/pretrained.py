"""A released model as an object: clips in, features or reconstructions out, with all that belongs to it.

    model = fmri_scale.from_pretrained("folder")
    latent = model(volume)            # [B, 1, 96, 96, 96, T] normalised clips -> [B, E, D, H, W, T]
    vector = model.features(volume)   # -> [B, E]

Volumes come from NIfTI files through `fmri_scale.evaluation.features`, or from a corpus through the loader's decoding.
Shape suffixes: B clips, C channels, XYZ voxels, T frames, DHW tokens along x, y, z, N tokens, E width of a feature.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fmri_scale.config import MaskConfig, ModelConfig
from fmri_scale.data import reduced_mask
from fmri_scale.errors import CheckpointError
from fmri_scale.models import Anatomy, Backbone, MaskedAutoencoder, draw_mask
from fmri_scale.release.preprocessing import Preprocessing


class Reconstruction(NamedTuple):
    """What a masked autoencoder makes of clips.

    Attributes
    ----------
    volume : the model's prediction of every voxel `[B, C, X, Y, Z, T]`; with `brain_tokens` 0 in patches without brain.
    hidden : bool `[B, X, Y, Z, T]`, the voxels it did not see.
    """

    volume: Tensor
    hidden: Tensor


class Encoder(nn.Module):
    """A backbone alone, under the name it has in the autoencoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)

    def set_brain(self, brain_XYZ: Tensor) -> None:
        """Say which voxels are brain, see `Backbone.set_brain`."""
        self.backbone.set_brain(brain_XYZ)


class Pretrained(nn.Module):
    """A model with its configuration, preprocessing, brain mask and origin. Made by `from_pretrained`.

    Attributes
    ----------
    config : shape of the model.
    preprocessing : what a run goes through before the model sees it.
    mask : bool `[96, 96, 96]`, the voxels that hold signal.
    identity : digest of the release; it changes with any byte of it.
    record : `training.json`: data, configuration, loss curve.
    path : the folder it was loaded from.
    """

    def __init__(self, config: ModelConfig, contents: str) -> None:
        super().__init__()
        self.config = config
        self.contents = contents
        self.model: MaskedAutoencoder | Encoder
        self.model = MaskedAutoencoder(config) if contents == "autoencoder" else Encoder(config)
        self.preprocessing: Preprocessing
        self.mask: np.ndarray
        self.mask_config = MaskConfig()
        self.identity = ""
        self.record: dict[str, Any] = {}
        self.path = Path()

    @property
    def backbone(self) -> Backbone:
        """The encoder, for fine-tuning."""
        return self.model.backbone

    @property
    def width(self) -> int:
        """E, the length of a feature vector."""
        return self.config.embed_dim * self.config.channel_multiplier ** (len(self.config.depths) - 1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, volume_BCXYZT: Tensor) -> Tensor:
        """Return the latent map `[B, E, D, H, W, T]` of normalised clips.

        Of a model with `brain_tokens` it is `[B, E, M, 1, 1, T]`: patches that hold no voxel of the mask have none.
        """
        return self.backbone(volume_BCXYZT)

    def features(self, volume_BCXYZT: Tensor) -> Tensor:
        """Return the mean of the latent map over all tokens, `[B, E]`."""
        return self.backbone.features(volume_BCXYZT)

    def reconstruct(self, volume_BCXYZT: Tensor, ratio: float | None = None, seed: int = 0) -> Reconstruction:
        """Hide part of clips and predict it.

        Parameters
        ----------
        volume_BCXYZT : normalised clips.
        ratio : fraction of tokens (windows, for a model trained on those) to hide; None takes the one of training.
        seed : decides which are hidden; clip b of the batch is drawn as clip id b.

        Raises
        ------
        CheckpointError : the release holds the encoder alone.
        """
        model = self.model
        if not isinstance(model, MaskedAutoencoder):
            raise CheckpointError(f"{self.path}: holds the encoder alone; export with the decoder to reconstruct")
        trained = self.mask_config
        # Regions need their atlas, which is not part of a release; single tokens are hidden in place of them.
        strategy = trained.strategy if trained.strategy in ("window", "tube") else "token"
        share = ratio or (trained.ratio if trained.ratio < 1 else 0.5)
        of = "brain" if self.config.brain_tokens else "units"
        wanted = MaskConfig(strategy=strategy, ratio=share, tube_len=trained.tube_len, ratio_of=of)
        batch, frames = volume_BCXYZT.shape[0], volume_BCXYZT.shape[-1]
        clip_ids = torch.arange(batch, device=volume_BCXYZT.device)
        where, anatomy = volume_BCXYZT.device, Anatomy(brain=model.computed) if self.config.brain_tokens else None
        mask = draw_mask(wanted, self.config, seed, 0, clip_ids, where, anatomy, num_frames=frames)
        if trained.strategy in ("region", "group"):
            mask = mask._replace(strategy="region")  # the mask token that was trained
        brain = None
        if model.loss.patch_norm and trained.loss_on == "brain":  # patches were normalised by what counted in them
            brain = reduced_mask(torch.from_numpy(self.mask), self.config.image_size).to(volume_BCXYZT.device)
        predicted = model.unpatchify(model(volume_BCXYZT, mask, brain, predict=True).prediction)
        return Reconstruction(predicted, self._voxels(mask.hidden, frames))

    def extra_repr(self) -> str:
        """Say what it is where a module is printed."""
        return (
            f"{self.contents}, {sum(p.numel() for p in self.parameters()):,} parameters, release {self.identity[:12]}"
        )

    def _voxels(self, hidden_BN: Tensor, frames: int) -> Tensor:
        """Spread hidden tokens over their voxels."""
        patch = self.config.patch_size[:3]
        grid = [n // p for n, p in zip(self.config.image_size, patch, strict=True)]
        hidden = hidden_BN.view(len(hidden_BN), *grid, frames)
        for axis, voxels in enumerate(patch, start=1):
            hidden = hidden.repeat_interleave(voxels, dim=axis)
        return hidden
