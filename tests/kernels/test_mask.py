"""Masks: exactly k units, the same bits in numpy and torch, uniform over units and pairs, a bijection with inverse."""

import numpy as np
import pytest
import torch

from fmri_scale.kernels.mask import masked_units, permute, unit_mask, unpermute
from fmri_scale.kernels.mask.op import unit_mask_op
from fmri_scale.kernels.mask.reference import philox

GOLDEN_BITS = "75749c76df32bdd1"
GOLDEN_PLACES = [167, 5, 19, 68, 18, 27, 279, 62]
SIZES = (5, 37, 64, 166, 320, 1000, 20_480, 81_920)


def test_philox_matches_published_vectors():
    """Known-answer tests of Random123's philox4x32-10 (kat_vectors)."""
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    digits = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(*digits) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("n", SIZES)
def test_torch_equals_numpy_and_hides_exactly_k(n):
    seed, epochs, clips = 2**63 - 5, torch.tensor([0, 3, 2**33]), torch.tensor([7, 2**40 + 1, 0])
    for k in (0, 1, n // 10, n // 2, n):
        ours = unit_mask(seed, epochs, clips, n, k).numpy()
        twin = np.stack([masked_units(seed, int(e), int(c), n, k) for e, c in zip(epochs, clips, strict=True)])
        assert np.array_equal(ours, twin)
        assert (ours.sum(1) == k).all()


@pytest.mark.parametrize("n", SIZES)
def test_order_is_a_bijection_with_inverse(n):
    units = torch.arange(n)
    places = permute(11, 2, 9, n, units)
    assert torch.equal(places.sort().values, units)
    assert torch.equal(unpermute(11, 2, 9, n, places), units)
    hidden = unpermute(11, 2, 9, n, units[: n // 3])
    assert torch.equal(hidden.sort().values, unit_mask(11, 2, torch.tensor([9]), n, n // 3)[0].nonzero().squeeze(1))


@pytest.mark.parametrize(("n", "spread"), [(37, 0.6), (166, 0.25), (320, 0.15), (600, 0.12)])
def test_units_and_pairs_are_hidden_evenly(n, spread):
    """Counts over clips against the exact expectation of drawing k of n without replacement.

    `spread` is three standard deviations of the pairs' variance for true random draws of this size.
    """
    k, clips = n // 2, 4000
    hidden = unit_mask(5, 0, torch.arange(clips), n, k).double()
    share = k / n
    units = (hidden.sum(0) - clips * share) ** 2 / (clips * share * (1 - share))
    chi = (units.sum() * (n - 1) / n).item()
    assert abs(chi - (n - 1)) < 4 * (2 * (n - 1)) ** 0.5  # chi-square with n - 1 degrees of freedom

    together = (hidden.T @ hidden)[torch.ones(n, n, dtype=torch.bool).triu(1)]
    chance = share * (k - 1) / (n - 1)
    z = (together - clips * chance) / (clips * chance * (1 - chance)) ** 0.5
    assert abs(z.mean()) < 1e-9  # exactly k a clip
    assert abs(z.var() - 1) < spread
    assert z.abs().max() < 6.0


def test_every_subset_of_a_few_units_is_as_likely():
    n, k, clips = 5, 2, 20_000
    hidden = unit_mask(5, 0, torch.arange(clips), n, k).long()
    _, counts = (hidden * 2 ** torch.arange(n)).sum(1).unique(return_counts=True)
    assert len(counts) == 10
    chi = ((counts - clips / 10) ** 2 / (clips / 10)).sum()
    assert chi < 27.9  # 9 degrees of freedom, p = 0.001


def test_mask_depends_on_seed_epoch_and_clip_but_not_on_the_batch():
    clips = torch.arange(6)
    whole = unit_mask(1, 4, clips, 320, 160)
    parts = torch.cat([unit_mask(1, 4, part, 320, 160) for part in clips.split(4)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole.flip(0), unit_mask(1, torch.full((6,), 4), clips.flip(0), 320, 160))
    for other in (unit_mask(2, 4, clips, 320, 160), unit_mask(1, 5, clips, 320, 160)):
        assert 0.3 < (other != whole).double().mean() < 0.7
    assert 0.3 < (whole[1:] != whole[:-1]).double().mean() < 0.7


def test_mask_bits_never_change():
    """A change would silently alter every resumed run."""
    mask = unit_mask(20_240, 3, torch.tensor([5]), 81_920, 40_960)[0]
    packed = np.packbits(mask.numpy())
    assert packed[:8].tobytes().hex() == GOLDEN_BITS
    assert permute(20_240, 3, 5, 320, torch.arange(8)).tolist() == GOLDEN_PLACES


def test_mask_passes_opcheck():
    keys = torch.tensor([0, 3])
    torch.library.opcheck(unit_mask_op, (keys, keys, 7, 37, 12, "auto"))


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="6 of 5 units"):
        unit_mask(0, 0, torch.tensor([0]), 5, 6)
    with pytest.raises(ValueError, match="0 units"):
        unit_mask(0, 0, torch.tensor([0]), 0, 0)
