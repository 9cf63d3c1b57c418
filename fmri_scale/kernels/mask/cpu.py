"""The keyed bijection in torch, for a batch of clips on any device; equal to `reference` bit for bit.

32-bit words live in int64 (torch has no unsigned arithmetic); every product is cut back to its low 32 bits.
"""

import torch

from fmri_scale.kernels.mask.reference import MIX_M, PHILOX_M, PHILOX_W, WORD, Feistel, feistel_shape


def unit_mask(seed: int, epoch: torch.Tensor, clip_ids: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """Which units are hidden, bool `(B, n)`; epoch and clip_ids are int64 `(B,)`."""
    keys = unit_keys(seed, epoch, clip_ids)
    units = torch.arange(n, device=clip_ids.device).expand(len(clip_ids), n)
    return permute(units, keys, n) < k


def unit_keys(seed: int, epoch: torch.Tensor, clip_ids: torch.Tensor) -> torch.Tensor:
    """Key words of every clip's bijection, int64 `(B, 2)`."""
    c0, c1 = clip_ids & WORD, clip_ids >> 32 & WORD
    c2, c3 = epoch & WORD, epoch >> 32 & WORD
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        a, b = c0 * PHILOX_M[0], c2 * PHILOX_M[1]
        c0, c1, c2, c3 = (b >> 32 & WORD) ^ c1 ^ k0, b & WORD, (a >> 32 & WORD) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + PHILOX_W[0]) & WORD, (k1 + PHILOX_W[1]) & WORD
    return torch.stack([c0, c1], 1)


def permute(units: torch.Tensor, keys: torch.Tensor, n: int, inverse: bool = False) -> torch.Tensor:
    """Images of units (int64 `(B, m)` in [0, n)) under each clip's bijection, or their preimages."""
    shape = feistel_shape(n)
    keys = keys[:, None, :].expand(*units.shape, 2).reshape(-1, 2)
    x = _network(units.reshape(-1), keys[:, 0], keys[:, 1], shape, inverse)
    outside = (x >= n).nonzero().squeeze(1)
    while len(outside):
        again = _network(x[outside], keys[outside, 0], keys[outside, 1], shape, inverse)
        x[outside] = again
        outside = outside[again >= n]
    return x.view(units.shape)


def _network(x: torch.Tensor, k0: torch.Tensor, k1: torch.Tensor, shape: Feistel, inverse: bool) -> torch.Tensor:
    left_mask, right_mask = (1 << shape.left) - 1, (1 << shape.right) - 1
    left, right = x >> shape.right & left_mask, x & right_mask
    rounds = range(shape.rounds)
    for i in reversed(rounds) if inverse else rounds:
        ka, kb = (k0 + (i * PHILOX_W[0] & WORD)) & WORD, k1 ^ (i * PHILOX_W[1] & WORD)
        if i % 2 == 0:
            right = (right ^ _mix(_mix(left, ka), kb)) & right_mask
        else:
            left = (left ^ _mix(_mix(right, ka), kb)) & left_mask
    return left << shape.right | right


def _mix(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    x = (x ^ key) * MIX_M[0] & WORD
    x = (x ^ x >> 13) * MIX_M[1] & WORD
    return x ^ x >> 16
