"""Masks by definition, in numpy: unit u of n is hidden if and only if perm(u) < k.

`perm` is a bijection of [0, n) keyed by (seed, epoch, clip): exactly k units are hidden, nothing is sorted or stored,
and any token can be asked on its own, on any device, at any position of a resumed run. The key is one Philox4x32-10
block (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3) with the seed as key and (clip, epoch) as
counter. The bijection is an alternating unbalanced Feistel network on ceil(log2 n) bits with a murmur-style round
function; images outside [0, n) are mapped again until they fall inside (cycle walking; Black & Rogaway 2002).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PHILOX_M = (0xD2511F53, 0xCD9E8D57)
PHILOX_W = (0x9E3779B9, 0xBB67AE85)
MIX_M = (0x85EBCA6B, 0xC2B2AE35)
WORD = 0xFFFFFFFF
MANY_UNITS = 64
"Below this many units a Feistel half has few values and 8 rounds are visibly uneven; 24 are not."


class Feistel(NamedTuple):
    """Shape of the network for n units."""

    left: int
    "Bits of the left half."
    right: int
    "Bits of the right half."
    rounds: int
    "Alternating rounds."


def feistel_shape(n: int) -> Feistel:
    """Return bits and rounds of the bijection of [0, n)."""
    if not 1 <= n <= 1 << 31:
        raise ValueError(f"{n} units: expected 1 to {1 << 31}")
    bits = max(2, (n - 1).bit_length())
    return Feistel(bits // 2, bits - bits // 2, 8 if n >= MANY_UNITS else 24)


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in Python integers; words of 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * PHILOX_M[0], c2 * PHILOX_M[1]
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & WORD, (a >> 32) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + PHILOX_W[0]) & WORD, (k1 + PHILOX_W[1]) & WORD
    return c0, c1, c2, c3


def unit_key(seed: int, epoch: int, clip_id: int) -> tuple[int, int]:
    """Two key words of a clip's bijection."""
    counter = (clip_id & WORD, clip_id >> 32 & WORD, epoch & WORD, epoch >> 32 & WORD)
    return philox(counter, (seed & WORD, seed >> 32 & WORD))[:2]


def permute(seed: int, epoch: int, clip_id: int, n: int, u: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Images of units `u` (integers in [0, n)) under the clip's bijection, int64."""
    return _walk(u, n, unit_key(seed, epoch, clip_id), inverse=False)


def unpermute(seed: int, epoch: int, clip_id: int, n: int, v: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Units whose images are `v`: `unpermute(..., range(k))` enumerates the hidden units."""
    return _walk(v, n, unit_key(seed, epoch, clip_id), inverse=True)


def masked_units(seed: int, epoch: int, clip_id: int, n: int, k: int) -> npt.NDArray[np.bool_]:
    """Which of n units are hidden, bool `(n,)` with exactly k set."""
    return permute(seed, epoch, clip_id, n, np.arange(n)) < k


def _walk(units: npt.ArrayLike, n: int, key: tuple[int, int], inverse: bool) -> npt.NDArray[np.int64]:
    shape = feistel_shape(n)
    x = np.array(units, dtype=np.uint32)
    x = _network(x, key, shape, inverse)
    while (outside := x >= n).any():
        x[outside] = _network(x[outside], key, shape, inverse)
    return x.astype(np.int64)


def _network(x: npt.NDArray[np.uint32], key: tuple[int, int], shape: Feistel, inverse: bool) -> npt.NDArray[np.uint32]:
    left_mask, right_mask = np.uint32((1 << shape.left) - 1), np.uint32((1 << shape.right) - 1)
    left, right = x >> np.uint32(shape.right) & left_mask, x & right_mask
    rounds = range(shape.rounds)
    for i in reversed(rounds) if inverse else rounds:
        ka, kb = (key[0] + i * PHILOX_W[0]) & WORD, key[1] ^ (i * PHILOX_W[1] & WORD)
        if i % 2 == 0:
            right = (right ^ _mix(_mix(left, ka), kb)) & right_mask
        else:
            left = (left ^ _mix(_mix(right, ka), kb)) & left_mask
    return left << np.uint32(shape.right) | right


def _mix(x: npt.NDArray[np.uint32], key: int) -> npt.NDArray[np.uint32]:
    x = (x ^ np.uint32(key)) * np.uint32(MIX_M[0])
    x = (x ^ x >> np.uint32(13)) * np.uint32(MIX_M[1])
    return x ^ x >> np.uint32(16)
