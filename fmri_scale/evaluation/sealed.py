"""Parts of a task's data, and the seal on the test part.

A `Part` is what a probe sees: inputs, truth and weight of rows, and which side they are of. Test rows are never made
until a `FinalEvaluation` opens their `SealedTest`; a final evaluation is begun when every model is fitted, and writes
down, before anything is read, how often the test set of this split was opened and with which settings. A part made of
test rows is refused by everything that fits.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmri_scale.checkpoint.files import write_text
from fmri_scale.errors import DataError

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
        Hash of the splits whose test sets are opened.
    frozen
        What was fitted and chosen: anything that JSON can hold.
    """

    def __init__(self, book: Path | None, split_sha256: str, frozen: Mapping[str, Any]) -> None:
        self.openings = 1
        if book is None:
            return
        lines = book.read_text(encoding="utf-8").splitlines() if book.exists() else []
        self.openings += sum(json.loads(line)["split_sha256"] == split_sha256 for line in lines)
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "split_sha256": split_sha256}
        lines.append(json.dumps({**entry, "frozen": frozen}, sort_keys=True))
        write_text(book, "\n".join(lines) + "\n")


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
