"""Folders named by a rule of the user's own: --pattern 'sub-{subject}/.../{run}.nii.gz'.

{name} stands for the text of an entity, without a slash; the same name twice must have the same text. ... between
slashes stands for any folders or none, * for any text of one name. The pattern is of the path below the folder given.
"""

import re
from dataclasses import replace
from pathlib import Path

from sharding.discover.files import run_from_name
from sharding.discover.source import IMAGE_ENDINGS, LeftOut, RunSource, checked_dataset, dataset_name, label
from sharding.discover.walk import walk
from sharding.errors import InputError

PLACEHOLDERS = ("subject", "session", "run", "task", "dataset", "family")


def runs_by_pattern(folder: Path, pattern: str, dataset: str | None = None) -> tuple[list[RunSource], list[LeftOut]]:
    """Runs below a folder whose paths fit a pattern; other images are left out.

    Raises
    ------
    InputError
        The pattern names no subject, or something that is no entity.
    """
    rule = compiled(pattern)
    name = dataset or dataset_name(folder)
    runs: list[RunSource] = []
    left_out: list[LeftOut] = []
    for where, files in walk(folder, left_out):
        for path in (where / file for file in files if file.endswith(IMAGE_ENDINGS)):
            match = rule.fullmatch(path.relative_to(folder).as_posix())
            if match:
                runs.append(_run(path, match.groupdict(), name))
            else:
                left_out.append(LeftOut(path, f"does not fit --pattern {pattern}"))
    return runs, left_out


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression with a group for each placeholder."""
    seen: set[str] = set()
    parts = re.split(r"(\{[^{}]*\}|\.\.\./|\*)", pattern)
    text = "".join(_piece(part, pattern, seen) for part in parts)
    if "subject" not in seen:
        raise InputError(f"--pattern {pattern!r} has no {{subject}}; example: 'sub-{{subject}}/.../{{run}}.nii.gz'")
    return re.compile(text)


def _piece(part: str, pattern: str, seen: set[str]) -> str:
    if part == ".../":
        return r"(?:[^/]+/)*"
    if part == "*":
        return r"[^/]*"
    if not part.startswith("{"):
        return re.escape(part)
    name = part[1:-1]
    if name not in PLACEHOLDERS:
        raise InputError(f"--pattern {pattern!r}: {{{name}}} is none of {', '.join(PLACEHOLDERS)}")
    if name in seen:
        return f"(?P={name})"
    seen.add(name)
    return rf"(?P<{name}>[^/]+?)"


def _run(path: Path, found: dict[str, str], dataset: str) -> RunSource:
    labels = {name: label(text) for name, text in found.items() if name != "dataset"}
    source = run_from_name(path, checked_dataset(label(found["dataset"]) if "dataset" in found else dataset))
    return replace(source, **labels, found=True)  # type: ignore[arg-type]
