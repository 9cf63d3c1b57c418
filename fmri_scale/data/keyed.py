"""Randomness without state: hashes of keys, and permutations that are computed instead of stored.

Every function takes Python ints, or numpy uint64 arrays of one shape, and gives the same numbers for both; so the
order of the data is a function of (seed, epoch, ...) alone, whatever asks for it, in whatever order, on whatever
machine. Not for cryptography.

Sources: the mixing function is the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014); a permutation of
any size is an alternating Feistel network walked until it lands in range (Black and Rogaway, CT-RSA 2002).
"""

import functools
from typing import Any, TypeVar

import numpy as np

U = TypeVar("U", int, np.ndarray)

M64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLY_1 = 0xBF58476D1CE4E5B9
MULTIPLY_2 = 0x94D049BB133111EB
ROUNDS = 6


def mix64(x: U) -> U:
    """Return a bijective scramble of 64-bit integers."""
    x = ((x ^ (x >> 30)) * MULTIPLY_1) & M64
    x = ((x ^ (x >> 27)) * MULTIPLY_2) & M64
    return x ^ (x >> 31)


def fold(key: Any, part: U) -> U:
    """Return the key that follows from `key` (an int, or an array like `part`) by one more part."""
    return mix64((((key * GOLDEN) & M64) + part + GOLDEN) & M64)


def key_of(*parts: int) -> int:
    """Return one 64-bit key of several integers; their order matters."""
    key = 0
    for part in parts:
        key = fold(key, int(part) & M64)
    return key


def uniform(key: U) -> float | np.ndarray:
    """Return numbers in [0, 1) with 53 random bits, from keys."""
    return (mix64(key) >> 11) * 2.0**-53


def permute_one(key: int, size: int, place: int) -> int:
    """Return where `place` in [0, size) goes in the permutation of `size` things that `key` names."""
    bits = max(2, (size - 1).bit_length())
    low_bits = bits >> 1
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    rounds = _round_keys(key)
    while True:
        low, high = place & low_mask, place >> low_bits
        for even, odd in rounds:
            x = ((high ^ even) * MULTIPLY_1) & M64
            low ^= (((x ^ (x >> 32)) * MULTIPLY_2) & M64) >> 32 & low_mask
            x = ((low ^ odd) * MULTIPLY_1) & M64
            high ^= (((x ^ (x >> 32)) * MULTIPLY_2) & M64) >> 32 & high_mask
        place = high << low_bits | low
        if place < size:
            return place


def permute(key: np.ndarray, size: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return `permute_one` of every element: uint64 keys, int64 sizes and places of one shape, to int64."""
    bits = np.maximum(2, np.frexp((size - 1).astype(np.float64))[1]).astype(np.uint64)
    low_bits = bits >> 1
    one = np.ones_like(bits)
    low_mask, high_mask = (one << low_bits) - 1, (one << (bits - low_bits)) - 1
    keys = [mix64(key + np.uint64(i * GOLDEN & M64)) for i in range(ROUNDS)]
    out = place.astype(np.uint64)
    active = np.arange(out.size)
    while active.size:
        low, high = out[active] & low_mask[active], out[active] >> low_bits[active]
        for i in range(0, ROUNDS, 2):
            low = low ^ (_scramble(high ^ keys[i][active]) & low_mask[active])
            high = high ^ (_scramble(low ^ keys[i + 1][active]) & high_mask[active])
        out[active] = high << low_bits[active] | low
        active = active[out[active] >= size[active].astype(np.uint64)]
    return out.astype(np.int64)


def permutation(key: int, size: int) -> np.ndarray:
    """Return the whole permutation as int64 [size]."""
    whole = np.arange(size, dtype=np.int64)
    return permute(np.full(size, key, np.uint64), np.full(size, size, np.int64), whole)


def _scramble(x: np.ndarray) -> np.ndarray:
    x = x * np.uint64(MULTIPLY_1)
    return ((x ^ (x >> np.uint64(32))) * np.uint64(MULTIPLY_2)) >> np.uint64(32)


@functools.lru_cache(maxsize=4096)
def kept_fold(key: int, part: int) -> int:
    """Return `fold` of ints, remembered: for keys that many lookups share."""
    return fold(key, part)


@functools.lru_cache(maxsize=4096)
def _round_keys(key: int) -> tuple[tuple[int, int], ...]:
    keys = [mix64((key + i * GOLDEN) & M64) for i in range(ROUNDS)]
    return tuple(zip(keys[::2], keys[1::2], strict=True))
