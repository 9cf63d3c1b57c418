"""What the engine trains, and what it is fed with: from the int8 codes of some clips to one loss.

The loss of a step is the mean over its global batch of each clip's mean squared error on its hidden voxels (in the
brain, or all). The model averages over the clips of a micro-batch; micro-batches are of one size, so the mean over
them and over ranks is the mean over the global batch, however it was split.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fmri_scale.config import Config, ModelConfig
from fmri_scale.data import ClipBatch, decode, reduced_mask
from fmri_scale.data.decoding import reduction
from fmri_scale.models import MAEOutput, MaskedAutoencoder, TokenMask, draw_mask
from sharding.atlas import load_label_image_on_grid, patch_occupancy
from sharding.corpus import Corpus


class Objective(nn.Module):
    """The masked autoencoder under the precision of the run; parameters keep their names below `model.`."""

    def __init__(self, model: MaskedAutoencoder, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.bf16 = bf16

    def forward(self, volume: Tensor, mask: TokenMask, brain: Tensor | None) -> MAEOutput:
        """Return the model's output; matrix products run in bf16 where wanted, parameters and loss stay fp32."""
        with torch.autocast(volume.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(volume, mask, brain)


class ClipInput:
    """Turns batches into the arguments of `Objective` on the device of the run.

    Attributes
    ----------
    brain : bool `[X, Y, Z]`, voxels that are scored; None scores all (as published).
    """

    def __init__(self, config: Config, corpora: Sequence[Corpus], device: torch.device) -> None:
        self.config, self.device = config, device
        size = config.model.image_size
        inside = reduced_mask(torch.from_numpy(corpora[0].mask), size).to(device)
        self.brain = inside if config.mask.loss_on == "brain" else None
        self._mask_index = torch.from_numpy(corpora[0].mask_index).to(device)
        self._regions = (
            _regions(config.mask.atlas, config.model).to(device) if config.mask.strategy == "region" else None
        )

    @torch.no_grad()
    def __call__(self, batch: ClipBatch) -> tuple[Tensor, TokenMask, Tensor | None]:
        """Return volume `[B, 1, X, Y, Z, T]` float32, the drawn mask, and the brain."""
        config = self.config
        on_device = batch.to(self.device)
        volume = decode(on_device, config.data.normalisation, self._mask_index, config.model.image_size)
        mask = draw_mask(
            config.mask, config.model, config.seed, on_device.epoch, on_device.clip_id, self.device, self._regions
        )
        return volume, mask, self.brain


def _regions(atlas: str, model: ModelConfig) -> Tensor:
    """Return the voxels of each atlas region in the patch at each position, int64 `[R, M]`."""
    labels = load_label_image_on_grid(atlas)
    patch = [size * factor for size, factor in zip(model.patch_size, reduction(model.image_size), strict=False)]
    return torch.from_numpy(patch_occupancy(labels, patch)).to(torch.int64)
