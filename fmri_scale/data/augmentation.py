"""Augmentation of clips on the device: small rigid motion and scaling, shift in time, noise. Off unless configured.

Everything is drawn from (seed, epoch, clip id), so it depends on neither ranks nor readers nor a resume, and can be
drawn again: `moved_labels` moves a region map exactly as `augment` moved the volume. One motion holds for all frames
of a clip (head motion within a run is not simulated), applied as one grid sample with frames as channels.
Noise is the same on every machine with the same kind of device.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fmri_scale.config import AugmentConfig
from fmri_scale.data.batch import ClipBatch
from fmri_scale.data.keyed import M64, key_of, uniform
from sharding.format import GRID_AFFINE, GRID_SHAPE

MOTION, TIME, NOISE = 21, 22, 23
"Separate the random numbers of the kinds of augmentation."

EXTENT_MM = tuple(size * float(GRID_AFFINE[i, i]) for i, size in enumerate(GRID_SHAPE))
"Width of the grid along x, y, z."


def augment(
    volume: torch.Tensor,
    batch: ClipBatch,
    config: AugmentConfig,
    seed: int,
    fill: torch.Tensor | None = None,
    brain: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the augmented volume of a batch; the volume itself where everything is off.

    Parameters
    ----------
    volume
        [B, 1, X, Y, Z, T], of the whole grid.
    batch
        Its clips (epoch and clip_id are used; on the host, a GPU need not be waited for).
    config, seed
        Section `augment` of the configuration, and the run's seed.
    fill
        [B]: what stands outside the brain (the run's background for run_z); None is 0.
    brain
        bool [X, Y, Z]: where noise is added; None is everywhere.
    """
    if not (moves(config) or config.shift_frames or config.noise_sd):
        return volume
    keys = clip_keys(batch, seed)
    if config.shift_frames:
        volume = shift_time(volume, draws(keys, TIME, 1)[:, 0] * config.shift_frames)
    if moves(config):
        volume = move(volume, motions(keys, config), fill)
    if config.noise_sd:
        volume = add_noise(volume, keys, config.noise_sd, brain)
    return volume


def moved_labels(labels: torch.Tensor, batch: ClipBatch, config: AugmentConfig, seed: int) -> torch.Tensor:
    """Return a label map, int [X, Y, Z], as it lies in each clip of the augmented batch: [B, X, Y, Z], by nearest."""
    if not moves(config):
        return labels.expand(len(batch), *labels.shape)
    grid = sampling_grid(motions(clip_keys(batch, seed), config).to(labels.device), labels.shape)
    stacked = labels.to(torch.float64).expand(len(batch), 1, *labels.shape)  # float64 holds every label exactly
    moved = F.grid_sample(stacked, grid.double(), mode="nearest", padding_mode="zeros", align_corners=False)
    return moved[:, 0].to(labels.dtype)


def moves(config: AugmentConfig) -> bool:
    """Whether volumes are rotated, shifted in space or scaled."""
    return bool(config.rotation_deg or config.translation_mm or config.scale)


def clip_keys(batch: ClipBatch, seed: int) -> list[int]:
    """Return what each clip's augmentation is drawn from."""
    clips = zip(batch.epoch.tolist(), batch.clip_id.tolist(), strict=True)
    return [key_of(seed, epoch, clip_id) for epoch, clip_id in clips]


def draws(keys: list[int], kind: int, count: int) -> torch.Tensor:
    """Return numbers in [-1, 1), float64 [B, count]."""
    return torch.tensor([[2 * uniform(key_of(key, kind, i)) - 1 for i in range(count)] for key in keys]).double()


def motions(keys: list[int], config: AugmentConfig) -> torch.Tensor:
    """Return each clip's motion about the grid's centre, float64 [B, 3, 4] in mm: where a voxel's value is from."""
    drawn = draws(keys, MOTION, 7)
    turned = _rotations(drawn[:, :3] * math.radians(config.rotation_deg))
    size = 1 + drawn[:, 3] * config.scale
    return torch.cat([turned / size[:, None, None], drawn[:, 4:, None] * config.translation_mm], dim=2)


def move(volume: torch.Tensor, motion: torch.Tensor, fill: torch.Tensor | None = None) -> torch.Tensor:
    """Return [B, 1, X, Y, Z, T] moved by `motion`, all frames of a clip in one trilinear sampling."""
    shape = volume.shape[2:5]
    level = 0.0 if fill is None else fill.to(volume.dtype).view(-1, 1, 1, 1, 1)
    frames = volume[:, 0].permute(0, 4, 1, 2, 3) - level
    grid = sampling_grid(motion.to(volume.device), shape).to(volume.dtype)
    moved = F.grid_sample(frames, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved + level).permute(0, 2, 3, 4, 1).unsqueeze(1).contiguous()


def sampling_grid(motion: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Return where torch is to sample, [B, X, Y, Z, 3] in its coordinates (-1 to 1, last axis first), from mm."""
    half = torch.tensor(EXTENT_MM, dtype=motion.dtype, device=motion.device) / 2
    linear = motion[:, :, :3] * half / half[:, None]
    scaled = torch.cat([linear, motion[:, :, 3:] / half[:, None]], dim=2)
    reverse = [2, 1, 0]
    theta = torch.cat([scaled[:, reverse][:, :, reverse], scaled[:, reverse][:, :, 3:]], dim=2)
    return F.affine_grid(theta, [len(motion), 1, *shape], align_corners=False)


def shift_time(volume: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return [..., T] with frame t taken from t + shift[b], between frames linearly, the ends held."""
    last = volume.shape[-1] - 1
    place = (torch.arange(last + 1) + shift[:, None]).clamp(0, last)
    below = place.floor()
    weight = (place - below).to(volume)
    index = below.to(volume.device, torch.int64)
    shape = (len(shift), *[1] * (volume.dim() - 2), last + 1)
    earlier = volume.gather(-1, index.view(shape).expand_as(volume))
    later = volume.gather(-1, (index + 1).clamp_max(last).view(shape).expand_as(volume))
    return torch.lerp(earlier, later, weight.view(shape))


def add_noise(volume: torch.Tensor, keys: list[int], sd: float, brain: torch.Tensor | None = None) -> torch.Tensor:
    """Return the volume with Gaussian noise of its own in every voxel and frame (of the brain)."""
    noise = torch.empty_like(volume)
    for clip, key in zip(noise, keys, strict=True):
        generator = torch.Generator(volume.device).manual_seed(key_of(key, NOISE) & (M64 >> 1))
        clip.normal_(0.0, sd, generator=generator)
    if brain is not None:
        noise *= brain.to(volume.device)[..., None]
    return volume + noise


def region_counts(labels: torch.Tensor, regions: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """Return how many voxels each region fills in each patch of each clip: int64 [B, R, M].

    Parameters
    ----------
    labels
        int [B, X, Y, Z] of the grid, as from `moved_labels`.
    regions
        int [R]: the labels that count, sorted.
    patch
        Voxels of a patch along x, y, z.
    """
    clips = len(labels)
    blocks = labels.unfold(1, patch[0], patch[0]).unfold(2, patch[1], patch[1]).unfold(3, patch[2], patch[2])
    blocks = blocks.reshape(clips, -1, patch[0] * patch[1] * patch[2])
    place = torch.searchsorted(regions, blocks.contiguous()).clamp_max(len(regions) - 1)
    counts = torch.zeros(clips, len(regions), blocks.shape[1], dtype=torch.int64, device=labels.device)
    counted = (regions[place] == blocks).to(torch.int64)
    return counts.transpose(1, 2).contiguous().scatter_add_(2, place, counted).transpose(1, 2).contiguous()


def _rotations(angles: torch.Tensor) -> torch.Tensor:
    """Return rotation matrices, [B, 3, 3], of angles about x, y and z in radians, [B, 3], in this order."""
    whole = torch.eye(3, dtype=angles.dtype).expand(len(angles), 3, 3)
    for axis in range(3):
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        turn = torch.eye(3, dtype=angles.dtype).repeat(len(angles), 1, 1)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cos, cos, -sin, sin
        whole = turn @ whole
    return whole
