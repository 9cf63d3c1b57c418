"""Masks hide exactly what was asked, of whole units, and depend on (seed, epoch, clip) alone."""

import math

import pytest
import torch

from fmri_scale.config import MaskConfig
from fmri_scale.errors import ConfigError
from fmri_scale.models import Anatomy, clip_keys, draw_mask
from fmri_scale.models.draws import uniform
from fmri_scale.models.masking import masked_fractions
from tests.helpers.tiny_models import drawn, tiny

GRID = (8, 8, 8)
PATCH_VOXELS = 1728  # of the canonical 96^3 grid, cut into 8^3


def by_axes(mask, frames):
    """Hidden tokens `[B, x, y, z, t]`."""
    return mask.hidden.view(-1, *GRID, frames)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(("strategy", "units"), [("token", 512 * 8), ("window", 16), ("tube", 512)])
def test_exactly_the_ratio_of_units_is_hidden(strategy, units, ratio):
    mask = drawn(tiny(), 3, frames=8, strategy=strategy, ratio=ratio)
    tokens_of_a_unit = 512 * 8 // units
    assert mask.hidden.sum(1).tolist() == [round(ratio * units) * tokens_of_a_unit] * 3
    assert not torch.equal(mask.hidden[0], mask.hidden[1])


@pytest.mark.parametrize("frames", [4, 8, 6, 10])
def test_window_masks_hide_whole_windows_cut_at_the_clips_end(frames):
    hidden = by_axes(drawn(tiny(), 2, frames=frames, strategy="window"), frames)
    windows = 0
    for x, y, z, t in torch.cartesian_prod(*[torch.arange(0, n, 4) for n in (*GRID, frames)]).tolist():
        window = hidden[:, x : x + 4, y : y + 4, z : z + 4, t : t + 4].flatten(1)
        assert torch.equal(window.all(1), window.any(1))
        windows += window.any(1).long()
    assert windows.tolist() == [round(0.5 * 8 * math.ceil(frames / 4))] * 2


@pytest.mark.parametrize(("frames", "tube_len"), [(8, 0), (8, 4), (7, 3), (5, 8), (6, 1)])
def test_tube_masks_hide_a_position_for_the_tubes_length(frames, tube_len):
    hidden = by_axes(drawn(tiny(), 2, frames=frames, strategy="tube", tube_len=tube_len), frames)
    length = tube_len or frames
    hidden_tubes = 0
    for start in range(0, frames, length):
        tube = hidden[..., start : start + length]
        assert torch.equal(tube.all(-1), tube.any(-1))
        hidden_tubes += tube.any(-1).flatten(1).sum(1)
    assert hidden_tubes.tolist() == [round(0.5 * 512 * math.ceil(frames / length))] * 2


@pytest.mark.parametrize("strategy", ["token", "window", "tube", "region"])
def test_a_clips_mask_does_not_depend_on_its_batch(strategy):
    config, mask = tiny(), MaskConfig(strategy=strategy, tube_len=2)
    regions = regions_of_slabs() if strategy == "region" else None
    clip_ids, epochs = torch.tensor([7, 1 << 40, 3, 7, 12]), torch.tensor([0, 0, 1, 1, 0])
    whole = draw_mask(mask, config, 11, epochs, clip_ids, "cpu", regions)
    for i in range(5):
        alone = draw_mask(mask, config, 11, int(epochs[i]), clip_ids[i : i + 1], "cpu", regions)
        assert torch.equal(alone.hidden[0], whole.hidden[i])
        assert torch.equal(alone.keys[0], whole.keys[i])
    assert not torch.equal(whole.hidden[0], whole.hidden[3]), "another epoch hides other tokens"
    other_seed = draw_mask(mask, config, 12, epochs, clip_ids, "cpu", regions)
    assert not torch.equal(other_seed.hidden, whole.hidden)


def test_every_token_is_hidden_equally_often():
    hidden = torch.cat([drawn(tiny(), 64, seed=seed, ratio=0.25).hidden for seed in range(8)])
    share = hidden.float().mean(0)
    assert abs(share.mean() - 0.25) < 1e-6
    # 512 draws: a share's standard deviation is 0.019, and 2048 tokens reach about 4 of them
    assert (share - 0.25).abs().max() < 0.11


def test_a_ratio_that_hides_nothing_or_everything_is_refused():
    for ratio in (0.01, 0.99):
        with pytest.raises(ConfigError, match=rf"mask.ratio={ratio} hides (0|8) of 8 units \(window\)"):
            drawn(tiny(), strategy="window", ratio=ratio)


def regions_of_slabs():
    """Eight regions, one for each x; the last patch of each is labelled in 10 % only."""
    regions = torch.zeros(8, 512, dtype=torch.int64)
    for x in range(8):
        regions[x, x * 64 : (x + 1) * 64] = PATCH_VOXELS
        regions[x, (x + 1) * 64 - 1] = PATCH_VOXELS // 10
    return Anatomy(regions)


def test_region_masks_hide_whole_regions_and_an_exact_share_of_labelled_tokens():
    mask = draw_mask(MaskConfig("region", 0.5), tiny(), 0, 0, torch.arange(4), "cpu", regions_of_slabs())
    maskable = 8 * 63 * 4
    assert mask.hidden.sum(1).tolist() == [maskable // 2] * 4
    slabs = mask.hidden.view(4, 8, 64, 4)
    assert not slabs[:, :, 63].any(), "a patch with little of any region is not hidden"
    whole = slabs[:, :, :63].flatten(2)
    assert torch.equal(whole.all(2), whole.any(2))
    assert (whole.any(2).sum(1) == 4).all()


def test_region_masks_of_spans_change_over_a_clip():
    config = MaskConfig("region", 0.5, tube_len=2)
    mask = draw_mask(config, tiny(), 0, 0, torch.arange(6), "cpu", regions_of_slabs(), num_frames=6)
    slabs = mask.hidden.view(6, 8, 64, 3, 2)[:, :, :63]
    assert torch.equal(slabs.all(-1), slabs.any(-1)), "a span is hidden as a whole"
    assert (slabs[..., 0, 0] != slabs[..., 1, 0]).any()
    assert mask.hidden.sum(1).tolist() == [8 * 63 * 6 // 2] * 6


def test_a_patch_is_hidden_once_the_chosen_regions_fill_half_of_it():
    regions = torch.zeros(3, 512, dtype=torch.int64)
    regions[0, :2] = PATCH_VOXELS
    regions[1, 2:4] = PATCH_VOXELS
    shared = 4
    regions[:, shared] = torch.tensor([0.3, 0.3, 0.4]).mul(PATCH_VOXELS).long()
    regions[2, 5:7] = PATCH_VOXELS
    outcomes = set()
    for clip in range(40):
        mask = draw_mask(MaskConfig("region", 0.71), tiny(), 0, 0, torch.tensor([clip]), "cpu", Anatomy(regions))
        hidden = mask.hidden.view(512, 4)[:7].all(1)
        chosen = [r for r, own in enumerate((slice(0, 2), slice(2, 4), slice(5, 7))) if hidden[own].all()]
        assert len(chosen) == 2
        assert hidden.sum() == 5
        assert hidden[shared], "any two of the three fill half of the shared patch"
        outcomes.add(tuple(chosen))
    assert len(outcomes) == 3


def test_strategy_region_needs_an_atlas():
    with pytest.raises(ConfigError, match=r"mask\.atlas"):
        drawn(tiny(), strategy="region", atlas="atlas.nii.gz")
    with pytest.raises(ConfigError, match="0 of 0 tokens that the atlas labels"):
        draw_mask(MaskConfig("region"), tiny(), 0, 0, torch.arange(1), "cpu", Anatomy(torch.zeros(2, 512).long()))


def test_hidden_fractions_of_all_and_of_brain_tokens():
    mask = drawn(tiny(), 2, ratio=0.5)
    brain = torch.zeros(512)
    brain[:100] = 3
    found = masked_fractions(mask, brain)
    assert found["masked_fraction"] == 0.5
    inside = mask.hidden.view(2, 512, 4)[:, :100].float().mean()
    assert torch.allclose(found["masked_fraction_brain"], inside)
    assert "masked_fraction_brain" not in masked_fractions(mask, None)


def test_uniform_draws_are_uniform_and_keyed():
    keys = clip_keys(3, 0, torch.arange(2000))
    assert len(keys.unique()) == 2000
    draws = uniform(keys, 0, 50)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = (draws * 20).long().flatten().bincount(minlength=20)
    assert ((counts - 5000).abs() < 5 * 5000**0.5).all()
    assert abs(torch.corrcoef(torch.stack([draws[:, 0], draws[:, 1]]))[0, 1]) < 0.1
    assert torch.equal(draws[5], uniform(keys[5:6], 0, 50)[0])
    assert not torch.equal(draws, uniform(keys, 1, 50))
    assert torch.equal(draws, uniform(keys, 0, 60)[:, :50])
    assert uniform(keys, 10**6, 1).unique().numel() > 1990
    for seed in (4, 2**63, 2**64 - 1):
        assert not torch.equal(keys, clip_keys(seed, 0, torch.arange(2000)))
    assert not torch.equal(keys, clip_keys(3, 1, torch.arange(2000)))
