"""The keyed bijection in Triton; equal to `mask/reference.py` bit for bit.

`unit_keys` and `permute` are device functions that the kernels of `embed` and `loss` call for their own tokens, so
that no mask exists in memory; `unit_mask_kernel` writes one where somebody wants to look at it.
"""

import torch
import triton
import triton.language as tl

from fmri_scale.kernels.jit import launch
from fmri_scale.kernels.mask.reference import feistel_shape

BLOCK = 1024


def network(n: int) -> dict[str, int]:
    """Constants of the bijection of [0, n) for a launch."""
    shape = feistel_shape(n)
    return {"UNITS": n, "LEFT": shape.left, "RIGHT": shape.right, "ROUNDS": shape.rounds}


@triton.jit
def unit_keys(seed, epoch_ptr, clip_ptr, clip):
    """Two key words of a clip's bijection: Philox4x32-10 of (clip id, epoch) under the seed."""
    clip_id = tl.load(clip_ptr + clip).to(tl.uint64, bitcast=True)
    epoch = tl.load(epoch_ptr + clip).to(tl.uint64, bitcast=True)
    c0 = (clip_id & 0xFFFFFFFF).to(tl.uint32)
    c1 = (clip_id >> 32).to(tl.uint32)
    c2 = (epoch & 0xFFFFFFFF).to(tl.uint32)
    c3 = (epoch >> 32).to(tl.uint32)
    k0, k1, _, _ = tl.philox(seed, c0, c1, c2, c3)
    return k0, k1


@triton.jit
def permute(
    u,
    k0,
    k1,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Images (or preimages) of the units `u`, a one-dimensional block of integers in [0, UNITS)."""
    x = _network(u.to(tl.uint32), k0, k1, LEFT, RIGHT, ROUNDS, INVERSE)
    if UNITS < (1 << (LEFT + RIGHT)):
        while tl.max((x >= UNITS).to(tl.int32), 0) > 0:
            x = tl.where(x >= UNITS, _network(x, k0, k1, LEFT, RIGHT, ROUNDS, INVERSE), x)
    return x.to(tl.int32)


@triton.jit
def _network(x, k0, k1, LEFT: tl.constexpr, RIGHT: tl.constexpr, ROUNDS: tl.constexpr, INVERSE: tl.constexpr):
    left = (x >> RIGHT) & ((1 << LEFT) - 1)
    right = x & ((1 << RIGHT) - 1)
    for step in tl.static_range(ROUNDS):
        left, right = _round(left, right, k0, k1, ROUNDS - 1 - step if INVERSE else step, LEFT, RIGHT)
    return (left << RIGHT) | right


@triton.jit
def _round(left, right, k0, k1, ROUND: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    ka = k0 + ((ROUND * 0x9E3779B9) & 0xFFFFFFFF)
    kb = k1 ^ ((ROUND * 0xBB67AE85) & 0xFFFFFFFF)
    if ROUND % 2 == 0:
        right = (right ^ _mix(_mix(left, ka), kb)) & ((1 << RIGHT) - 1)
    else:
        left = (left ^ _mix(_mix(right, ka), kb)) & ((1 << LEFT) - 1)
    return left, right


@triton.jit
def _mix(x, key):
    x = (x ^ key) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def unit_mask_kernel(
    out_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    k,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Which units are hidden (program axis 0: units, axis 1: clips)."""
    clip = tl.program_id(1)
    u = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k0, k1 = unit_keys(seed, epoch_ptr, clip_ptr, clip)
    place = permute(tl.where(u < UNITS, u, 0), k0, k1, UNITS, LEFT, RIGHT, ROUNDS, False)
    tl.store(out_ptr + clip.to(tl.int64) * UNITS + u, place < k, mask=u < UNITS)


def unit_mask(seed: int, epoch: torch.Tensor, clip_ids: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """Which units are hidden, bool `(B, n)`; epoch and clip_ids are int64 `(B,)`."""
    mask = torch.empty(len(clip_ids), n, dtype=torch.bool, device=clip_ids.device)
    block = min(BLOCK, triton.next_power_of_2(n))
    grid = (triton.cdiv(n, block), len(clip_ids))
    launch(unit_mask_kernel, grid, mask.device, mask, epoch, clip_ids, seed, k, **network(n), BLOCK=block)
    return mask
