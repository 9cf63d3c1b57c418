"""The Triton mask, interpreted, has the bits of the torch and numpy ones; its inverse enumerates the hidden units."""

import pytest
import torch
import triton
import triton.language as tl

from fmri_scale.kernels.mask import unit_mask, unpermute
from fmri_scale.kernels.mask.triton import network, permute, unit_keys

SIZES = (1, 2, 5, 37, 64, 166, 320, 1000, 20_480, 81_920)


@pytest.mark.parametrize("n", SIZES)
def test_bits_equal_those_of_the_cpu(n):
    epochs, clips = torch.tensor([0, 3, 2**33]), torch.tensor([7, 2**40 + 1, 0])
    few = slice(0, 1 if n > 10_000 else 3)
    epochs, clips = epochs[few], clips[few]
    for seed, k in ((2**63 - 5, n // 2),) if n > 10_000 else ((3, n // 2), (2**63 - 5, n // 10)):
        ours = unit_mask(seed, epochs, clips, n, k, backend="triton")
        assert torch.equal(ours, unit_mask(seed, epochs, clips, n, k, backend="torch"))
        assert (ours.sum(1) == k).all()


@triton.jit
def _enumerate(
    out_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    k0, k1 = unit_keys(seed, epoch_ptr, clip_ptr, 0)
    tl.store(out_ptr + tl.arange(0, 64), permute(tl.arange(0, 64), k0, k1, UNITS, LEFT, RIGHT, ROUNDS, True))


@pytest.mark.parametrize("n", [64, 166, 81_920])
def test_inverse_enumerates_the_hidden_units(n):
    out = torch.empty(64, dtype=torch.int32)
    _enumerate[(1,)](out, torch.tensor([4]), torch.tensor([9]), 11, **network(n))
    assert torch.equal(out.long(), unpermute(11, 4, 9, n, torch.arange(64)))
