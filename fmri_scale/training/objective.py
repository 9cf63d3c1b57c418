"""What the engine trains, and what it is fed with: from the int8 codes of some clips to one loss.

The model reads codes wherever it can: `reads_codes` says when. Otherwise, and for pictures, they are decoded first.

The loss of a step is the mean over its global batch of each clip's mean squared error on its hidden voxels (in the
brain, or all). The model averages over the clips of a micro-batch; micro-batches are of one size, so the mean over
them and over ranks is the mean over the global batch, however it was split.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fmri_scale.config import AugmentConfig, Config, LossConfig
from fmri_scale.data import ClipBatch, augment, decode, moved_labels, reduced_mask, region_counts
from fmri_scale.data.augmentation import moves
from fmri_scale.data.decoding import reduction
from fmri_scale.kernels.clips import CodedClips, normalise, voxel_lookup
from fmri_scale.models import Anatomy, MAEOutput, MaskedAutoencoder, TokenMask, clip_keys, draw_mask
from fmri_scale.models.contrastive import ClipViews
from fmri_scale.models.masking import check_draws, strategies
from fmri_scale.training.mask_atlas import MaskAtlas
from fmri_scale.training.views import cut, pair_starts, view_seed
from sharding.corpus import Corpus
from sharding.format import GRID_SHAPE

Clips = Tensor | CodedClips | ClipViews
"Volumes, codes, or several volumes of each run."


class Objective(nn.Module):
    """The masked autoencoder under the precision of the run; parameters keep their names below `model.`."""

    def __init__(self, model: MaskedAutoencoder, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.bf16 = bf16

    def forward(self, clips: Clips, mask: TokenMask, brain: Tensor | bool | None) -> MAEOutput:
        """Return the model's output; matrix products run in bf16 where wanted, parameters and loss stay fp32."""
        with torch.autocast(mask.keys.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(clips, mask, brain)


def reads_codes(config: Config) -> bool:
    """Whether the model takes codes as they are: not augmented, reduced or normalised by frame, and plainly scored."""
    plain = config.augment == AugmentConfig() and config.data.normalisation in ("run_z", "voxel_z", "none")
    plain = plain and config.loss == LossConfig() and not config.objective.contrasts
    return plain and config.model.in_channels == 1 and reduction(config.model.image_size) == (1, 1, 1)


class ClipInput:
    """Turns batches into the arguments of `Objective` on the device of the run.

    Attributes
    ----------
    brain : bool `[X, Y, Z]`, voxels that are scored, or their weights; None scores all alike (as published).
    """

    def __init__(self, config: Config, corpora: Sequence[Corpus], device: torch.device) -> None:
        self.config, self.device = config, device
        size = config.model.image_size
        inside = reduced_mask(torch.from_numpy(corpora[0].mask), size).to(device)
        self._inside = inside
        self.brain = inside if config.mask.loss_on == "brain" else None
        self.reads_codes = reads_codes(config)
        self._mask_index = torch.from_numpy(corpora[0].mask_index).to(device)
        self._lookup = voxel_lookup(self._mask_index, GRID_SHAPE)
        self._brain_M = brain_positions(inside, config.model.patch_size)
        weighted = bool(config.loss.region_weights) or config.loss.equal_regions
        by_region = not strategies(config.mask).isdisjoint(("region", "group"))
        self._atlas = MaskAtlas(config.mask, self._patch, device) if by_region or weighted else None
        self._anatomy = self._atlas.anatomy(self._brain_M) if self._atlas else Anatomy(brain=self._brain_M)
        check_draws(config.mask, config.model, self._anatomy)
        if self._atlas and weighted:
            weight = self._atlas.voxel_weights(config.loss, reduction(size))
            self.brain = weight if self.brain is None else weight * self.brain

    @torch.no_grad()
    def __call__(self, batch: ClipBatch, step: int | None = None) -> tuple[Clips, TokenMask, Tensor | bool | None]:
        """Return the clips, as codes where the model reads them, the drawn mask, and what is scored.

        Of stretches that are longer than a clip (views.py) they are views of two clips each.

        `step` is the number of optimizer steps done, for a mask with a schedule. None stands for validation, which
        measures one task throughout: the schedule's end, on clips as they were recorded, without augmentation.
        """
        if self.config.objective.contrasts and batch.codes.shape[1] > self.config.model.num_frames:
            return self._views(batch, step)
        if not self.reads_codes:
            return self.volumes(batch, step)
        clips = batch.to(self.device)
        numbers = (clips.scale, clips.unit, clips.mean, clips.sd, clips.background, clips.stats)
        affine = normalise(self.config.data.normalisation, *numbers)
        x, y, z, _ = self.config.model.patch_size
        coded = CodedClips(clips.codes, *affine, self._lookup, GRID_SHAPE, (x, y, z))
        return coded, self._mask(clips.epoch, clips.clip_id, self._anatomy, step), self.brain is not None

    @torch.no_grad()
    def volumes(self, batch: ClipBatch, step: int | None = None) -> tuple[Tensor, TokenMask, Tensor | None]:
        """Return volume `[B, 1, X, Y, Z, T]` float32, the drawn mask, and the brain; `step` as for a call."""
        changes = AugmentConfig() if step is None else self.config.augment
        volume = self._volume(batch, self.config.seed, changes)
        if self._atlas is not None and moves(changes):
            return volume, self._moved_mask(batch, self._atlas, step), self.brain
        epoch, clip_id = batch.epoch.to(self.device), batch.clip_id.to(self.device)
        return volume, self._mask(epoch, clip_id, self._anatomy, step), self.brain

    def _volume(self, batch: ClipBatch, seed: int, changes: AugmentConfig) -> Tensor:
        config, on_device = self.config, batch.to(self.device)
        volume = decode(on_device, config.data.normalisation, self._mask_index, config.model.image_size)
        outside = on_device.background if config.data.normalisation == "run_z" else None
        return augment(volume, batch, changes, seed, outside, self._inside)

    def _views(self, batch: ClipBatch, step: int | None) -> tuple[ClipViews, TokenMask, Tensor | None]:
        """Return two clips of each stretch, and both again under other changes where these are compared."""
        seed, frames = self.config.seed, self.config.model.num_frames
        starts = pair_starts(batch, seed, frames)
        clips = [cut(batch, starts[:, i], frames) for i in (0, 1)]
        volume, mask, brain = self.volumes(clips[0], step)
        seeds = [view_seed(seed, view) for view in range(self.config.objective.views)]
        changes = self.config.augment
        volumes = [volume, *(self._volume(clips[view % 2], seeds[view], changes) for view in range(1, len(seeds)))]
        epoch, clip_id = batch.epoch.to(self.device), batch.clip_id.to(self.device)
        keys = torch.stack([clip_keys(own, epoch, clip_id) for own in seeds])
        return ClipViews(torch.stack(volumes), keys), mask, brain

    @property
    def _patch(self) -> list[int]:
        """Voxels of the grid that a patch spans along x, y, z."""
        model = self.config.model
        return [size * factor for size, factor in zip(model.patch_size, reduction(model.image_size), strict=False)]

    def _mask(self, epoch: Tensor, clip_id: Tensor, anatomy: Anatomy, step: int | None) -> TokenMask:
        config = self.config
        return draw_mask(config.mask, config.model, config.seed, epoch, clip_id, self.device, anatomy, step=step)

    def _moved_mask(self, batch: ClipBatch, atlas: MaskAtlas, step: int | None) -> TokenMask:
        """Return masks whose regions follow each clip's own motion."""
        labels = moved_labels(atlas.labels, batch, self.config.augment, self.config.seed)
        counts = region_counts(labels, atlas.indices, self._patch)
        masks = []
        for i, counts_RM in enumerate(counts):
            anatomy = atlas.anatomy(self._brain_M, counts_RM)
            masks.append(self._mask(batch.epoch[i : i + 1], batch.clip_id[i : i + 1], anatomy, step))
        hidden, keys = (torch.cat(parts) for parts in zip(*[(mask.hidden, mask.keys) for mask in masks], strict=True))
        return TokenMask.given(hidden, masks[0].grid, masks[0].strategy, keys)._replace(brain=self._brain_M)


def brain_positions(inside_XYZ: Tensor, patch: Sequence[int]) -> Tensor:
    """Return the brain voxels in the patch at each position, int32 `[M]`, of a brain, bool `[X, Y, Z]`."""
    x, y, z = (voxels // size for voxels, size in zip(inside_XYZ.shape, patch, strict=False))
    blocks = inside_XYZ.view(x, patch[0], y, patch[1], z, patch[2])
    return blocks.sum((1, 3, 5), dtype=torch.int32).flatten()
