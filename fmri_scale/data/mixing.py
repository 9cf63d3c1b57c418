"""How often each dataset is seen: shares from weights or a temperature, and a schedule that keeps them exactly.

The stream is cut into blocks of BLOCK clips; every block has the same number of clips of each dataset, in an order of
its own. So the number of clips of a dataset before any position is known in closed form, and each dataset runs through
its own epochs, each clip once per epoch, whatever its share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fmri_scale.data.keyed import fold, permute, permute_one
from fmri_scale.errors import ConfigError

BLOCK = 8192
"Clips of a schedule block: shares are exact to 1 / BLOCK."


@dataclass(frozen=True)
class Mixture:
    """Clips of each pool in every block of the stream.

    counts
        int64 [pools], sum BLOCK.
    key
        Decides the order inside blocks.
    """

    counts: np.ndarray
    key: int

    def place_one(self, position: int) -> tuple[int, int]:
        """Return (pool, how many clips of that pool stand before in the stream's account) of a position."""
        block, inside = divmod(position, BLOCK)
        ticket = permute_one(fold(self.key, block), BLOCK, inside)
        pool = int(np.searchsorted(np.cumsum(self.counts), ticket, side="right"))
        return pool, block * int(self.counts[pool]) + ticket - int(self.counts[:pool].sum())

    def place(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `place_one` of every position: int64 [n] to int64 [n], int64 [n]."""
        block, inside = positions // BLOCK, positions % BLOCK
        key = fold(self.key, block.astype(np.uint64))
        ticket = permute(key, np.full(positions.shape, BLOCK, np.int64), inside)
        ends = np.cumsum(self.counts)
        pool = np.searchsorted(ends, ticket, side="right")
        return pool, block * self.counts[pool] + ticket - (ends - self.counts)[pool]


def shares_of(
    names: Sequence[str], clips: Sequence[int], weights: Mapping[str, float], temperature: float
) -> np.ndarray | None:
    """Return the share of each dataset in the stream, float64 [datasets] of sum 1; None to mix by size.

    Parameters
    ----------
    names, clips
        The datasets and their clips per epoch.
    weights
        Relative weight of each dataset by name; every dataset must have one (0 leaves it out). Empty: use temperature.
    temperature
        Shares are proportional to clips ** (1 / temperature): 1 by size, larger flattens towards equal shares.

    Raises
    ------
    ConfigError
        A weight for an unknown dataset, a dataset without a weight, or no positive weight.
    """
    if weights:
        unknown, absent = sorted(set(weights) - set(names)), sorted(set(names) - set(weights))
        if unknown or absent:
            wrong = f"no dataset {unknown[0]!r}" if unknown else f"no weight for dataset {absent[0]!r}"
            raise ConfigError(f"data.weights: {wrong}; the split has: {', '.join(sorted(names))}")
        raw = np.array([weights[name] for name in names], np.float64)
        if not (np.isfinite(raw).all() and (raw >= 0).all() and raw.sum() > 0):
            raise ConfigError(f"data.weights={dict(weights)}: expected numbers of at least 0, one of them above 0")
    elif temperature != 1.0 and len(names) > 1:
        raw = np.asarray(clips, np.float64) ** (1.0 / temperature)
    else:
        return None
    return raw / raw.sum()


def block_counts(names: Sequence[str], shares: np.ndarray) -> np.ndarray:
    """Return int64 [datasets]: clips of each dataset in a block, by largest remainder.

    Raises
    ------
    ConfigError
        A dataset whose share is above 0 but under half a clip per block: it would never be seen.
    """
    exact = shares * BLOCK
    counts = np.floor(exact).astype(np.int64)
    for i in np.argsort(counts - exact, kind="stable")[: BLOCK - int(counts.sum())]:
        counts[i] += 1
    for name, share, count in zip(names, shares, counts, strict=True):
        if share > 0 and count == 0:
            raise ConfigError(f"mixing: the share of dataset {name!r} is {share:.2e}; the least is 1/{BLOCK}")
    return counts
