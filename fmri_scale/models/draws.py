"""Random numbers that depend on what they are for, not on when or where they are drawn.

Every clip has a 64-bit key from (seed, epoch, clip id). A draw is a hash of that key, the purpose (`salt`) and a
counter, so it is the same on every device, rank and batch split, after a resume and in a recomputed block.
"""

import torch
from torch import Tensor

_STEP = -7046029254386353131  # 2^64 / golden ratio, odd, as a signed 64-bit integer


def clip_keys(seed: int, epoch: int | Tensor, clip_ids_B: Tensor) -> Tensor:
    """Return int64 keys `[B]`; `epoch` is one number or int64 `[B]`, since a batch may span two epochs."""
    epochs = torch.as_tensor(epoch, dtype=torch.int64, device=clip_ids_B.device)
    start = torch.full_like(clip_ids_B, (seed + 2**63) % 2**64 - 2**63)  # as a signed number
    return _mix(_mix(_mix(start * _STEP) + epochs * _STEP) + clip_ids_B * _STEP)


def uniform(keys_B: Tensor, salt: int, count: int) -> Tensor:
    """Return float32 numbers in [0, 1), `[B, count]`, with 24 random bits each."""
    counter = torch.arange(count, device=keys_B.device, dtype=torch.int64)
    purpose_B = _mix(keys_B + torch.full_like(keys_B, salt + 1) * _STEP)
    bits = _mix(purpose_B.unsqueeze(1) + (counter + 1) * _STEP)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """Return the splitmix64 finaliser of int64 `x` (Steele et al. 2014); products wrap around."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
