"""A split on disk: JSON with a hash of its content, and a TSV of the same to look at.

Reading checks the hash and that no group stands on two sides, so a split that was edited by hand is refused.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fmri_scale.checkpoint.files import write_json, write_text
from fmri_scale.errors import DataError
from fmri_scale.evaluation.splits import Choice, Fold, Split, checked

SPLIT_VERSION = 1


def save_split(split: Split, path: str | Path) -> None:
    """Write PATH (JSON with its hash) and, beside it, a TSV with a row a fold and group."""
    path = Path(path)
    content = {"version": SPLIT_VERSION, "sha256": split.sha256, **asdict(split)}
    write_json(path, content)
    lines = ["fold\tgroup\tside", *("\t".join(row) for row in _rows(split))]
    write_text(path.with_suffix(".tsv"), "\n".join(lines) + "\n")


def load_split(path: str | Path) -> Split:
    """Read what `save_split` wrote.

    Raises
    ------
    DataError
        The file is missing, changed since it was written, of a newer version, or divides a group.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        version, sha256 = int(content["version"]), str(content["sha256"])
        split = _from_json(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a split that this program wrote ({error}); make it again") from error
    if version > SPLIT_VERSION:
        raise DataError(f"{path}: split version {version}, this program reads up to {SPLIT_VERSION}; update it")
    if split.sha256 != sha256:
        raise DataError(f"{path}: content does not fit its sha256; it was changed after it was made: make it again")
    return checked(split)


def _rows(split: Split) -> Iterator[tuple[str, str, str]]:
    for fold in split.folds:
        held_out = {group for choice in fold.choices for group in choice.val} - set(fold.fit)
        for side, groups in (("train", fold.fit), ("val", sorted(held_out)), ("test", fold.test)):
            yield from ((fold.name, group, side) for group in groups)


def _from_json(content: Mapping[str, Any]) -> Split:
    folds = tuple(
        Fold(
            fold["name"],
            tuple(fold["fit"]),
            tuple(Choice(tuple(choice["train"]), tuple(choice["val"])) for choice in fold["choices"]),
            tuple(fold["test"]),
        )
        for fold in content["folds"]
    )
    return Split(content["method"], content["level"], (content["seeds"][0], content["seeds"][1]), folds)
