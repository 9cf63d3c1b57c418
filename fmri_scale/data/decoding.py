"""From int8 codes to the normalised volume, on the device where the batch lies.

In: a `ClipBatch` and a normalisation. Out: volume [B, 1, X, Y, Z, T]. Every normalisation but frame_z is one affine map
per voxel, z = gain * q + shift, so the kernels can apply the same numbers without a volume. Outside the corpus mask
stands what "no brain" is in that normalisation: the run's background for run_z (as published), 0 otherwise.
"""

import math

import torch
import torch.nn.functional as F

from fmri_scale.data.batch import ClipBatch
from fmri_scale.errors import ConfigError
from sharding.format import GRID_SHAPE


def affine(batch: ClipBatch, normalisation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gain and shift, float32 [B, V] each, of z = gain * q + shift.

    run_z: (x - mean) / sd over the run's brain and all its frames (NeuroSTORM). voxel_z: by each voxel's own temporal
    mean and sd; 0 where it is constant. none: x itself. frame_z: x in units, before `decode` normalises each frame.
    """
    offset, step = batch.scale.float().unbind(1)
    if normalisation == "frame_z":
        return step, offset
    if normalisation == "voxel_z":
        if batch.stats is None:
            raise ConfigError("the batch has no voxel statistics: it was read with another data.normalisation")
        shift, sd = batch.stats.float().unbind(1)
        return torch.where(sd > 0, step / sd, 0.0), shift
    unit = batch.unit[:, None]
    if normalisation == "run_z":
        sd = batch.sd[:, None]
        return step * (unit / sd), (offset * unit - batch.mean[:, None]) / sd
    if normalisation == "none":
        return step * unit, offset * unit
    raise ConfigError(f"data.normalisation={normalisation!r}: expected run_z, voxel_z, frame_z or none")


def decode(
    batch: ClipBatch,
    normalisation: str,
    mask_index: torch.Tensor,
    image_size: tuple[int, int, int] | list[int] = GRID_SHAPE,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the volume of a batch.

    Parameters
    ----------
    batch
        B clips of T frames of V voxels.
    normalisation
        run_z, voxel_z, frame_z or none.
    mask_index
        int64 [V]: place of each voxel in the flattened (C order) grid, on the batch's device.
    image_size
        Voxels of the volume: the grid, or the grid divided by whole numbers; then each voxel is the mean of a block.
    dtype
        Of the volume; the arithmetic is float32.

    Returns
    -------
    [B, 1, X, Y, Z, T] of `dtype`, contiguous.
    """
    factors = reduction(image_size)
    outside = batch.background if normalisation == "run_z" else torch.zeros_like(batch.background)
    if factors != (1, 1, 1):
        return _block_means(batch, normalisation, mask_index, factors, outside).to(dtype)
    values = _values(batch.codes, *affine(batch, normalisation), normalisation == "frame_z")
    clips, frames, _ = values.shape
    volume = outside.to(dtype)[:, None, None].repeat(1, math.prod(GRID_SHAPE), frames)
    volume.index_copy_(1, mask_index, values.transpose(1, 2).to(dtype))
    return volume.view(clips, 1, *GRID_SHAPE, frames)


def reduction(image_size: tuple[int, int, int] | list[int]) -> tuple[int, int, int]:
    """Return by how many voxels of the grid a voxel of the image spans, along x, y, z.

    Raises
    ------
    ConfigError
        The grid is not divided evenly.
    """
    if any(grid % size for grid, size in zip(GRID_SHAPE, image_size, strict=True)):
        raise ConfigError(f"model.image_size={list(image_size)}: expected divisors of the grid {list(GRID_SHAPE)}")
    x, y, z = (grid // size for grid, size in zip(GRID_SHAPE, image_size, strict=True))
    return x, y, z


def reduced_mask(mask: torch.Tensor, image_size: tuple[int, int, int] | list[int]) -> torch.Tensor:
    """Return the corpus mask, bool [96, 96, 96], at the size of the image: True where a block has a brain voxel."""
    factors = reduction(image_size)
    return F.max_pool3d(mask[None].float(), factors, factors)[0] > 0


def _values(codes: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, each_frame: bool) -> torch.Tensor:
    """Return normalised values of brain voxels, float32 [..., T, V]; `each_frame`: by its own mean and sd."""
    values = torch.addcmul(shift.unsqueeze(-2), gain.unsqueeze(-2), codes)
    if not each_frame:
        return values
    sd, mean = torch.std_mean(values, dim=-1, correction=0, keepdim=True)
    return (values - mean) / sd.clamp_min(torch.finfo(torch.float32).tiny)


def _block_means(
    batch: ClipBatch,
    normalisation: str,
    mask_index: torch.Tensor,
    factors: tuple[int, int, int],
    outside: torch.Tensor,
) -> torch.Tensor:
    """Return the volume [B, 1, X, Y, Z, T] of block means, without ever making the whole one.

    Brain voxels are added to their blocks, and `outside` [B] once for each other voxel. Frame by frame, in a CPU's
    cache: a tenth of the time of decoding all voxels first, which was most of a small model's step.
    """
    x, y, z = (grid // factor for grid, factor in zip(GRID_SHAPE, factors, strict=True))
    i, j, k = torch.unravel_index(mask_index, GRID_SHAPE)
    block = ((i // factors[0]) * y + j // factors[1]) * z + k // factors[2]
    size = math.prod(factors)
    empty = size - torch.bincount(block, minlength=x * y * z)
    sums = outside[:, None, None] * empty.repeat(batch.codes.shape[1], 1)
    for total, codes, gain, shift in zip(sums, batch.codes, *affine(batch, normalisation), strict=True):
        for frame, of_voxel in zip(total, codes, strict=True):
            frame.index_add_(0, block, _values(of_voxel[None], gain, shift, normalisation == "frame_z")[0])
    return (sums / size).transpose(1, 2).contiguous().view(len(sums), 1, x, y, z, -1)
