"""Augmentation moves what it should by what it says, the region map with it, the same for every rank and restart."""

import math

import pytest
import torch

from fmri_scale.config import AugmentConfig, load_config
from fmri_scale.data import ClipBatch, augment, moved_labels, region_counts
from fmri_scale.data.augmentation import add_noise, clip_keys, motions, move, shift_time
from fmri_scale.errors import ConfigError
from sharding.atlas import patch_occupancy


def batch_of(clip_ids, epochs=None):
    clips = len(clip_ids)
    numbers, facts = torch.tensor(clip_ids), torch.ones(clips)
    return ClipBatch(
        codes=torch.zeros(clips, 1, 1, dtype=torch.int8),
        scale=torch.zeros(clips, 2, 1, dtype=torch.float16),
        stats=None,
        unit=facts,
        mean=facts,
        sd=facts,
        background=-6 * facts,
        clip_id=numbers,
        epoch=torch.tensor(epochs or [0] * clips),
        position=numbers,
        start_frame=numbers,
        keys=["k"] * clips,
        valid=facts > 0,
    )


def blob(size, centre, frames=2, width=2.0):
    """A smooth ball at `centre` (in voxels), [1, 1, X, Y, Z, T]; frame t is t + 1 times as bright."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
    ball = torch.exp(-distance / (2 * width**2))
    return torch.stack([ball * (t + 1) for t in range(frames)], -1)[None, None]


def centre_of(volume):
    """Centre of mass in voxels, of frame 0."""
    mass = volume[0, 0, ..., 0].double()
    return [
        float((mass.sum([a for a in range(3) if a != axis]) * torch.arange(n)).sum() / mass.sum())
        for axis, n in enumerate(mass.shape)
    ]


def motion_of(rotation=(0.0, 0.0, 0.0), scale=1.0, shift=(0.0, 0.0, 0.0)):
    from fmri_scale.data.augmentation import _rotations

    turned = _rotations(torch.tensor([rotation], dtype=torch.float64)) / scale
    return torch.cat([turned, torch.tensor(shift, dtype=torch.float64)[None, :, None]], dim=2)


def test_nothing_changes_by_default():
    volume = torch.randn(1, 1, 4, 4, 4, 2)
    assert augment(volume, batch_of([5]), AugmentConfig(), 0) is volume
    labels = torch.randint(0, 5, (4, 4, 4))
    assert torch.equal(moved_labels(labels, batch_of([5, 6]), AugmentConfig(), 0), torch.stack([labels, labels]))
    assert load_config().augment == AugmentConfig()
    with pytest.raises(ConfigError, match=r"augment\.scale"):
        load_config(overrides=["augment.scale=1.5"])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_in_mm_moves_along_its_axis(axis):
    shift = [0.0, 0.0, 0.0]
    shift[axis] = 6.0  # the value at p comes from p + 6 mm: 1.5 voxels of 4 mm
    before = blob((48, 48, 48), (24, 20, 27))
    moved = move(before, motion_of(shift=tuple(shift)))
    expected = centre_of(before)
    expected[axis] -= 1.5
    assert centre_of(moved) == pytest.approx(expected, abs=0.01)
    torch.testing.assert_close(moved[..., 1], 2 * moved[..., 0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_rotation_turns_about_its_axis_also_on_a_grid_of_unequal_sides(axis):
    angle, size = math.radians(20), (48, 32, 24)  # voxels of 4, 6 and 8 mm
    voxel = torch.tensor([192 / n for n in size])
    middle = (torch.tensor(size) - 1) / 2
    place = middle + torch.tensor([6.0, -4.0, 3.0])
    before = blob(size, place.tolist(), width=1.6)
    rotation = [0.0, 0.0, 0.0]
    rotation[axis] = angle
    motion = motion_of(tuple(rotation))
    expected = middle + (motion[0, :, :3].T.float() @ ((place - middle) * voxel)) / voxel
    assert centre_of(move(before, motion)) == pytest.approx(expected.tolist(), abs=0.15)
    back = move(move(before, motion), motion_of(tuple(-r for r in rotation)))
    assert float((back - before).abs().max()) < 0.25


def test_scaling_moves_away_from_the_centre():
    before = blob((48, 48, 48), (33.5, 23.5, 23.5))
    grown = move(before, motion_of(scale=1.2))
    assert centre_of(grown) == pytest.approx([23.5 + 12, 23.5, 23.5], abs=0.02)
    assert float(grown[..., 0].sum() / before[..., 0].sum()) == pytest.approx(1.2**3, rel=0.02)


def test_outside_the_grid_stands_the_background():
    moved = move(torch.zeros(1, 1, 8, 8, 8, 1), motion_of(shift=(50.0, 0, 0)), torch.tensor([-6.0]))
    assert torch.equal(moved[0, 0, :4], torch.zeros(4, 8, 8, 1))
    assert torch.allclose(moved[0, 0, 6:], torch.full((2, 8, 8, 1), -6.0))


def test_the_region_map_moves_with_the_volume():
    config = AugmentConfig(rotation_deg=8, translation_mm=9, scale=0.1)
    labels = torch.zeros(24, 24, 24, dtype=torch.int32)
    labels[4:12, 8:16, 9:18], labels[13:20, 8:16, 9:18] = 7, 8100
    batch = batch_of([11, 12, 13])
    as_volume = torch.stack([labels == 7, labels == 8100]).float()[:, None, ..., None]
    moved = moved_labels(labels, batch, config, seed=3)
    for label, inside in zip((7, 8100), as_volume, strict=True):
        volume = augment(inside.expand(3, 1, 24, 24, 24, 1), batch, config, seed=3)
        agree = ((moved == label) == (volume[:, 0, ..., 0] > 0.5)).float().mean((1, 2, 3))
        assert (agree > 0.98).all()
    assert not torch.equal(moved[0], moved[1])


def test_region_counts_are_those_of_the_atlas_module():
    labels = torch.randint(0, 4, (2, 12, 12, 12), dtype=torch.int32)
    counts = region_counts(labels, torch.tensor([1, 2, 3]), (6, 4, 3))
    for clip in range(2):
        assert torch.equal(counts[clip], torch.from_numpy(patch_occupancy(labels[clip].numpy(), (6, 4, 3))).long())


def test_draws_depend_on_seed_epoch_and_clip_alone():
    config = AugmentConfig(rotation_deg=5, translation_mm=4, scale=0.05, shift_frames=1, noise_sd=0.1)
    volume = torch.randn(3, 1, 12, 12, 12, 4)
    together = augment(volume, batch_of([1, 2, 3], [0, 1, 0]), config, 9)
    for i, (clip, epoch) in enumerate(((1, 0), (2, 1), (3, 0))):
        alone = augment(volume[i : i + 1], batch_of([clip], [epoch]), config, 9)
        torch.testing.assert_close(alone, together[i : i + 1])
    again = augment(volume, batch_of([1, 2, 3], [1, 1, 0]), config, 9)
    assert not torch.allclose(again[0], together[0])
    assert torch.equal(again[1:], together[1:])
    assert not torch.allclose(augment(volume, batch_of([1, 2, 3], [0, 1, 0]), config, 10), together)


def test_motions_keep_within_their_limits_and_use_them():
    config = AugmentConfig(rotation_deg=5, translation_mm=4, scale=0.05)
    drawn = motions(clip_keys(batch_of(list(range(400))), 0), config)
    linear, shift = drawn[:, :, :3], drawn[:, :, 3]
    size = torch.linalg.det(linear) ** (-1 / 3)
    assert 0.95 <= size.min() < 0.96
    assert 1.04 < size.max() <= 1.05
    assert shift.abs().max() <= 4
    assert (shift.amin(0) < -3.8).all()
    assert (shift.amax(0) > 3.8).all()
    rotation = linear * size[:, None, None]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(400, 3, 3))
    angle = torch.rad2deg(torch.acos(((rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)))
    assert angle.max() <= 5 * 3**0.5 + 0.1


def test_time_shift_interpolates_and_holds_the_ends():
    ramp = torch.arange(5.0).expand(2, 1, 1, 1, 1, 5)
    shifted = shift_time(ramp, torch.tensor([0.25, -1.5]).double())
    assert shifted[0].ravel().tolist() == pytest.approx([0.25, 1.25, 2.25, 3.25, 4.0])
    assert shifted[1].ravel().tolist() == pytest.approx([0, 0, 0.5, 1.5, 2.5])


def test_noise_is_of_its_size_inside_the_brain_and_independent_between_frames():
    brain = torch.zeros(16, 16, 16, dtype=torch.bool)
    brain[2:14, 2:14, 2:14] = True
    noise = add_noise(torch.zeros(2, 1, 16, 16, 16, 3), [5, 6], 0.3, brain)
    assert not noise[:, 0][:, ~brain].any()
    inside = noise[:, 0][:, brain]
    assert float(inside.std()) == pytest.approx(0.3, rel=0.03)
    frames = torch.cat([inside[0].T, inside[1].T])
    assert (torch.corrcoef(frames) - torch.eye(6)).abs().max() < 0.1
