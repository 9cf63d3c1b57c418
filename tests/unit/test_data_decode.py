"""Codes become exactly the signal that the corpus stands for, in every normalisation."""

import numpy as np
import pytest
import torch

from fmri_scale.data import ClipBatch, decode, reduced_mask
from fmri_scale.errors import ConfigError
from sharding.format import GRID_SHAPE
from tests.helpers.corpora import small_mask


@pytest.fixture(scope="module")
def mask():
    return small_mask(50)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    scale = np.stack([rng.uniform(4, 9, (2, 50)), rng.uniform(0.001, 0.01, (2, 50))], 1).astype(np.float16)
    stats = np.stack([rng.uniform(-0.1, 0.1, (2, 50)), rng.uniform(0.1, 0.5, (2, 50))], 1).astype(np.float16)
    stats[0, :, 7] = 0  # a constant voxel
    scale[0, 1, 7] = 0
    facts = torch.tensor([[128.0, 700.0, 110.0, -6.4], [64.0, 300.0, 50.0, -6.0]]).T.contiguous()
    numbers = torch.arange(2)
    return ClipBatch(
        codes=torch.from_numpy(rng.integers(-127, 128, (2, 3, 50), dtype=np.int8)),
        scale=torch.from_numpy(scale),
        stats=torch.from_numpy(stats),
        unit=facts[0],
        mean=facts[1],
        sd=facts[2],
        background=facts[3],
        clip_id=numbers,
        epoch=numbers,
        position=numbers,
        start_frame=numbers,
        keys=["a", "b"],
        valid=torch.ones(2, dtype=torch.bool),
    )


def signal(batch):
    """x = unit * (offset + step * q), float64 [B, T, V], written out."""
    q, scale = batch.codes.numpy().astype(np.float64), batch.scale.numpy().astype(np.float64)
    return batch.unit.numpy()[:, None, None] * (scale[:, None, 0] + scale[:, None, 1] * q)


def expected(batch, normalisation):
    x = signal(batch)
    if normalisation == "run_z":
        return (x - batch.mean.numpy()[:, None, None]) / batch.sd.numpy()[:, None, None]
    if normalisation == "frame_z":
        return (x - x.mean(2, keepdims=True)) / x.std(2, keepdims=True)
    if normalisation == "voxel_z":
        step, (shift, sd) = batch.scale.double().numpy()[:, 1], batch.stats.double().numpy().transpose(1, 0, 2)
        gain = np.divide(step, sd, out=np.zeros_like(step), where=sd > 0)
        return gain[:, None] * batch.codes.numpy() + shift[:, None]
    return x


@pytest.mark.parametrize("normalisation", ["run_z", "voxel_z", "frame_z", "none"])
def test_decoded_volume_is_the_signal_in_the_brain_and_background_outside(batch, mask, normalisation):
    volume = decode(batch, normalisation, torch.from_numpy(np.flatnonzero(mask)))
    assert volume.shape == (2, 1, *GRID_SHAPE, 3)
    assert volume.is_contiguous()
    inside = volume[:, 0][:, torch.from_numpy(mask)]
    np.testing.assert_allclose(inside.transpose(1, 2), expected(batch, normalisation), rtol=2e-5, atol=2e-5)
    outside = volume[:, 0][:, torch.from_numpy(~mask)]
    wanted = batch.background if normalisation == "run_z" else torch.zeros(2)
    assert torch.equal(outside, wanted[:, None, None].expand_as(outside))


def test_a_constant_frame_decodes_to_zeros_not_nan(batch, mask):
    still = ClipBatch(
        **{**batch.__dict__, "codes": torch.zeros_like(batch.codes), "scale": torch.ones_like(batch.scale)}
    )
    assert not decode(still, "frame_z", torch.from_numpy(np.flatnonzero(mask))).any()


@pytest.mark.parametrize("normalisation", ["run_z", "voxel_z", "frame_z", "none"])
def test_smaller_images_are_means_of_blocks(batch, mask, normalisation):
    index = torch.from_numpy(np.flatnonzero(mask))
    whole, small = decode(batch, normalisation, index), decode(batch, normalisation, index, (48, 32, 96))
    assert small.is_contiguous()
    blocks = whole.reshape(2, 1, 48, 2, 32, 3, 96, 1, 3).mean((3, 5, 7))
    torch.testing.assert_close(small, blocks)
    small_brain = reduced_mask(torch.from_numpy(mask), (48, 32, 96))
    assert torch.equal(small_brain, torch.from_numpy(mask.reshape(48, 2, 32, 3, 96, 1).any((1, 3, 5))))
    with pytest.raises(ConfigError, match="divisors"):
        decode(batch, "run_z", index, (50, 96, 96))


def test_voxel_z_without_voxel_statistics_says_so(batch, mask):
    bare = ClipBatch(**{**batch.__dict__, "stats": None})
    with pytest.raises(ConfigError, match="voxel statistics"):
        decode(bare, "voxel_z", torch.from_numpy(np.flatnonzero(mask)))
