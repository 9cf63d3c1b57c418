"""Parts of a task's data, and the seal on the test part.

A `Part` is what a probe sees: inputs, truth and weight of rows, and which side they are of. Test rows are never made
until a `FinalEvaluation` opens their `SealedTest`; a final evaluation is begun when every model is fitted, and writes
down, before anything is read, how often the test set of this split was opened and with which settings. A part made of
test rows is refused by everything that fits.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmri_scale.checkpoint.files import write_text
from fmri_scale.errors import DataError
from fmri_scale.evaluation.splits import Split

FIT, VAL, TEST = "fit", "val", "test"


@dataclass(frozen=True)
class Part:
    """Rows of one side; R rows.

    Attributes
    ----------
    side
        fit, val or test.
    inputs
        Array (R, ...) or list of R arrays.
    truth
        int64 (R,) class numbers or float64 (R,) values: those of the row's unit.
    unit
        int64 (R,): number of the unit that the row belongs to.
    """

    side: str
    inputs: Any
    truth: np.ndarray
    unit: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """float64 (R,): rows of a unit share its weight of one, so that long runs count no more; mean 1."""
        _, which, rows = np.unique(self.unit, return_inverse=True, return_counts=True)
        weight = 1 / rows[which]
        return weight / weight.mean()


def refuse_test(part: Part) -> None:
    """Raise RuntimeError where test rows reach something that fits or chooses."""
    if part.side == TEST:
        raise RuntimeError("test rows must not be fitted on or chosen by; pass a fit or val part")


class FinalEvaluation:
    """Permission to open test sets, written down when it is given.

    Parameters
    ----------
    book
        File with a line (JSON) an opening, beside the results; None keeps no book (tests, simulations).
    split_sha256
        Hashes of the splits whose test sets are opened, joined by +.
    frozen
        What was fitted and chosen: anything that JSON can hold.
    tests
        Hashes of the groups tested (`groups_tested`); an earlier opening counts if it shares one, or a split.

    Raises
    ------
    DataError
        A line of the book is not one that this program wrote.
    """

    def __init__(
        self, book: Path | None, split_sha256: str, frozen: Mapping[str, Any], tests: Collection[str] = ()
    ) -> None:
        self.openings = 1
        if book is None:
            return
        lines = book.read_text(encoding="utf-8").splitlines() if book.exists() else []
        mine = {*tests, *split_sha256.split("+")}
        self.openings += sum(not mine.isdisjoint(_opened_by(line, book)) for line in lines)
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "split_sha256": split_sha256}
        lines.append(json.dumps({**entry, "tests": sorted(tests), "frozen": frozen}, sort_keys=True))
        write_text(book, "\n".join(lines) + "\n")


def groups_tested(splits: Collection[Split]) -> set[str]:
    """Hashes of who is tested: the groups of each fold, and those of all folds of a split together.

    They do not depend on how the rest is divided, so other seeds of the same test people are seen to be the same.
    """
    every = [[group for fold in split.folds for group in fold.test] for split in splits]
    return {_hash(groups) for groups in [*every, *(fold.test for split in splits for fold in split.folds)]}


def _hash(groups: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(groups)).encode()).hexdigest()


def _opened_by(line: str, book: Path) -> set[str]:
    """Hashes of the splits and test groups of an earlier opening."""
    try:
        entry = json.loads(line)
        return {*entry.get("tests", ()), *entry["split_sha256"].split("+")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{book}: {line[:40]!r} is no opening that was written down; restore the file") from error


class SealedTest:
    """Test rows that exist only once a final evaluation asks for them.

    Parameters
    ----------
    name
        Fold, for messages.
    make
        Makes the part; called at the opening, not before.
    """

    def __init__(self, name: str, make: Callable[[], Part]) -> None:
        self.name = name
        self._make = make

    def open(self, final: FinalEvaluation) -> Part:
        """Give out the test rows.

        Raises
        ------
        DataError
            Asked for by anything but a final evaluation.
        """
        if not isinstance(final, FinalEvaluation):
            raise DataError(f"the test set of {self.name} is sealed; only a final evaluation may read it (--final)")
        return self._make()
