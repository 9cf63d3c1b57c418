"""Who is trained on, who chooses, who is tested: by group (family, subject, or run of one subject), seeded, saved.

A `Split` is a list of folds. In each, `test` is sealed (sealed.py); `choices` are pairs of train and validation groups
by which settings are chosen; `fit` are the groups on which the chosen model and all its statistics are fitted. Groups
are never divided, whatever the method. split_file.py saves a split.

holdout           one fold; the test groups depend on `seed` alone, train and validation also on `choice_seed`
k_fold            every group is tested once; settings are chosen in inner folds of the others
leave_one_out     as k_fold with one group a fold
column            groups said to be train, val or test by a column, for instance of a corpus
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from fmri_scale.errors import DataError

NUM_STRATA = 4
"Quantile bins by which a continuous target is balanced between sides."
MAX_INNER = 5
"Inner folds in which settings are chosen."


@dataclass(frozen=True)
class Choice:
    """Groups to train on and to validate on while settings are chosen."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Fold:
    """One test set, with what may be used to get there."""

    name: str
    fit: tuple[str, ...]
    choices: tuple[Choice, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Folds over named groups.

    Attributes
    ----------
    method, level
        How it was made; what a group is (family, subject, session or run).
    seeds
        `seed` of the test groups and `choice_seed` of the rest.
    folds
        Every group of every fold.
    """

    method: str
    level: str
    seeds: tuple[int, int]
    folds: tuple[Fold, ...]

    @property
    def sha256(self) -> str:
        """Hash of the content."""
        content = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def groups(self) -> set[str]:
        """All groups."""
        return {group for fold in self.folds for group in (*fold.test, *_development(fold))}


def holdout(
    strata: Mapping[str, int],
    level: str,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    choice_seed: int = 0,
) -> Split:
    """Divide groups once into train, validation and test.

    Parameters
    ----------
    strata
        Group name to stratum (`strata_of`); every side gets its share of every stratum.
    level
        What a group is.
    fractions
        Shares of train, validation and test.
    seed, choice_seed
        Of the test set; of the division of the rest.

    Raises
    ------
    DataError
        The shares make no sense, or there are too few groups.
    """
    train, val, test = fractions
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"split fractions {list(fractions)}: expected three positive shares that sum to 1")
    if len(strata) < 3:
        raise DataError(f"{len(strata)} groups cannot be divided into train, validation and test; 3 or more are needed")
    held, rest = _deal(strata, (test, train + val), _random("test", seed))
    kept = {group: strata[group] for group in rest}
    validating, training = _deal(kept, (val / (train + val), train / (train + val)), _random("val", seed, choice_seed))
    fold = Fold("holdout", training, (Choice(training, validating),), held)
    return checked(Split("holdout", level, (seed, choice_seed), (fold,)))


def k_fold(strata: Mapping[str, int], level: str, num_folds: int, seed: int = 0) -> Split:
    """Test every group once; parameters as of `holdout`, errors too."""
    if not 2 <= num_folds <= len(strata):
        raise DataError(f"{num_folds} folds of {len(strata)} groups: expected 2 folds or more, a group in each")
    if len(strata) - -(-len(strata) // num_folds) < 2:
        raise DataError(f"{num_folds} folds of {len(strata)} groups leave fewer than 2 to train on and choose by")
    parts = _deal(strata, [1 / num_folds] * num_folds, _random("fold", seed))
    folds = []
    for number, test in enumerate(parts):
        rest = {group: strata[group] for group in strata if group not in set(test)}
        inner = _deal(rest, [1 / min(MAX_INNER, len(rest))] * min(MAX_INNER, len(rest)), _random("inner", seed, number))
        choices = tuple(Choice(tuple(sorted(set(rest) - set(val))), val) for val in inner)
        name = test[0] if len(parts) == len(strata) else f"fold {number + 1}"
        folds.append(Fold(name, tuple(sorted(rest)), choices, test))
    method = "leave_one_out" if num_folds == len(strata) else "k_fold"
    return checked(Split(method, level, (seed, seed), tuple(folds)))


def leave_one_out(strata: Mapping[str, int], level: str, seed: int = 0) -> Split:
    """Test each group alone, for instance each run of one subject."""
    if len(strata) < 3:
        raise DataError(f"leave one {level} out of {len(strata)}: 3 or more are needed")
    return k_fold(strata, level, len(strata), seed)


def by_column(sides: Mapping[str, str], level: str) -> Split:
    """Take the division from a column.

    Parameters
    ----------
    sides
        Group name to train, val or test.
    """
    parts = {side: tuple(sorted(g for g, s in sides.items() if s == side)) for side in ("train", "val", "test")}
    unknown = sorted(set(sides.values()) - set(parts))
    if unknown:
        raise DataError(f"split column says {unknown[0]!r}; expected train, val or test")
    empty = [side for side, groups in parts.items() if not groups]
    if empty:
        raise DataError(f"split column: nobody is in {', '.join(empty)}; all of train, val and test are needed")
    fold = Fold("column", parts["train"], (Choice(parts["train"], parts["val"]),), parts["test"])
    return checked(Split("column", level, (0, 0), (fold,)))


def restricted(split: Split, present: Collection[str]) -> Split:
    """Leave out the groups that are not there, and folds and choices that lose a whole side by it.

    Raises
    ------
    DataError
        Nobody is left to test, to fit on or to choose by.
    """
    there = set(present)
    if split.groups() <= there:
        return split

    def kept(groups: Sequence[str]) -> tuple[str, ...]:
        return tuple(group for group in groups if group in there)

    folds = []
    for fold in split.folds:
        fit, test = kept(fold.fit), kept(fold.test)
        pairs = (Choice(kept(choice.train), kept(choice.val)) for choice in fold.choices)
        choices = tuple(choice for choice in pairs if choice.train and choice.val)
        if not test:
            continue
        if not fit or not choices:
            raise DataError(
                f"split {fold.name}: no {split.level} of {'validation' if fit else 'training'} is among the "
                f"{len(there)} of this task; make a new split"
            )
        folds.append(Fold(fold.name, fit, choices, test))
    if not folds:
        raise DataError(
            f"split: no {split.level} of any test set is among the {len(there)} of this task; make a new split"
        )
    return replace(split, folds=tuple(folds))


def num_folds(splits: Mapping[int, Split]) -> int:
    """Most folds of a seed's split; their predictions are scored together."""
    return max(len(split.folds) for split in splits.values())


def strata_of(groups: np.ndarray, truth: np.ndarray, is_class: bool) -> dict[str, int]:
    """Stratum of each group: the commonest class of its units, or the quantile bin of their mean.

    Parameters
    ----------
    groups
        object (n,): group of each unit.
    truth
        int64 or float64 (n,): class number or value of each unit.
    """
    names = sorted(set(groups))
    if is_class:
        return {name: int(np.bincount(truth[groups == name]).argmax()) for name in names}
    means = np.array([truth[groups == name].mean() for name in names])
    edges = np.quantile(means, np.linspace(0, 1, NUM_STRATA + 1)[1:-1])
    return {name: int(stratum) for name, stratum in zip(names, np.searchsorted(edges, means), strict=True)}


def check_disjoint(split: Split, groups: np.ndarray, identities: Mapping[str, np.ndarray]) -> None:
    """Raise DataError if any person, family or run stands on two sides of a fold.

    Parameters
    ----------
    groups
        object (n,): group of each unit.
    identities
        What may not be shared, by name: object (n,) such as the subjects; "" is nobody.
    """
    for fold in split.folds:
        pairs = [(fold.fit, fold.test), *((choice.train, choice.val) for choice in fold.choices)]
        pairs += [(choice.val, fold.test) for choice in fold.choices]
        for one, other in pairs:
            on_one, on_other = np.isin(groups, list(one)), np.isin(groups, list(other))
            for what, names in identities.items():
                both = (set(names[on_one]) & set(names[on_other])) - {""}
                if both:
                    raise DataError(f"{what} {sorted(both)[0]!r} stands on two sides of {fold.name}; split by {what}")


def _deal(strata: Mapping[str, int], shares: Sequence[float], random: np.random.Generator) -> list[tuple[str, ...]]:
    """Deal groups to parts of given shares, stratum after stratum in random order; returns sorted names.

    Each group goes to the part that lacks most so far, so every stratum (a stretch of this order) is divided as
    evenly as whole groups allow, and the parts' sizes are exact.
    """
    parts: list[list[str]] = [[] for _ in shares]
    share = np.array(shares)
    dealt = np.zeros(len(share))
    for stratum in random.permutation(sorted(set(strata.values()))):
        names = np.array(sorted(name for name, s in strata.items() if s == stratum), dtype=object)
        for name in random.permutation(names):
            part = int((share * (dealt.sum() + 1) - dealt).argmax())
            parts[part].append(str(name))
            dealt[part] += 1
    if not all(parts):
        raise DataError(f"{len(strata)} groups are too few for {len(shares)} sides of shares {np.round(share, 3)}")
    return [tuple(sorted(part)) for part in parts]


def _random(purpose: str, *seeds: int) -> np.random.Generator:
    key = hashlib.sha256(f"{purpose}:{':'.join(map(str, seeds))}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:8], "little"))


def _development(fold: Fold) -> set[str]:
    return {*fold.fit, *(group for choice in fold.choices for group in (*choice.train, *choice.val))}


def checked(split: Split) -> Split:
    """Raise DataError unless no group stands on two sides."""
    for fold in split.folds:
        shared = set(fold.test) & _development(fold)
        for choice in fold.choices:
            shared |= set(choice.train) & set(choice.val)
        if shared:
            raise DataError(f"split {fold.name}: group {sorted(shared)[0]!r} stands on two sides")
    return split
