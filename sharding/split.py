"""Train, validation and test: by person, by a hash, so that they stay the same as a corpus grows.

A person's group is the family where a table names one, else the subject; a group is never divided. A split given by a
table goes before the hash.
"""

from collections.abc import Iterable

import xxhash

from sharding.errors import InputError
from sharding.format import SPLITS

SPLIT_SEED = 83
"Part of the contract: another would move people between splits. This one gives a phantom of six all three splits."

DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)


def split_of(dataset: str, group: str, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS) -> str:
    """Split of a group of people (a family or one subject) of a dataset.

    Parameters
    ----------
    dataset, group
        Names; the same names give the same split in every corpus.
    fractions
        Shares of train, val and test, summing to 1.
    """
    point = xxhash.xxh3_64_intdigest(f"{dataset}\0{group}".encode(), seed=SPLIT_SEED) / 2**64
    if point < fractions[0]:
        return "train"
    return "val" if point < fractions[0] + fractions[1] else "test"


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test from text such as 0.8,0.1,0.1."""
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--splits is {text!r}; expected three numbers, such as 0.8,0.1,0.1") from error
    if not (min(train, val, test) >= 0 and abs(train + val + test - 1) <= 1e-6):  # NaN is neither
        raise InputError(f"--splits is {text!r}; expected shares of 0 or more that sum to 1")
    return train, val, test


def empty_splits(splits: Iterable[str]) -> list[str]:
    """Splits that nobody fell into."""
    found = set(splits)
    return [name for name in SPLITS if name not in found]
