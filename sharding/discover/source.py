"""What discovery gives: a run and what names it, a file left out and why. Also how names become entities and labels.

Nothing here opens a file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sharding.errors import InputError
from sharding.format import DATASET_PATTERN

IMAGE_ENDINGS = (".nii", ".nii.gz")

VARIANT_ENTITIES = ("acq", "ce", "rec", "dir", "echo", "part")
"Entities that tell apart files of one task and run, in the order in which they stand in keys; others follow them."


@dataclass(frozen=True)
class RunSource:
    """One run to be taken into a corpus. Text is "" where unknown."""

    path: Path
    dataset: str
    subject: str
    session: str = ""
    run: str = ""
    task: str = ""
    variant: str = ""
    "Further entities of the name, such as dir-AP_echo-2."
    family: str = ""
    tr: float | None = None
    "Repetition time in s, where given or found in a sidecar that is not beside the image."
    tr_from: str = ""
    "sidecar where `tr` was found in one; else `tr` was given."
    mask: Path | None = None
    "The run's own brain mask, where there is one."
    confounds: Path | None = None
    "Table of fMRIPrep confounds, where there is one."
    motion: Path | None = None
    "Frame-to-frame displacement in mm, a number a line (HCP, FSL), where there is one."
    split: str = ""
    "Where given; else by hash."
    alias: str = ""
    "What is written for the path in a corpus under pseudonyms; empty where the path itself is."
    hidden: tuple[str, ...] = ()
    "Texts that must not be written."
    found: bool = False
    "Found in a folder, not named by the user: a 3D image is then left out, not an error."


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that discovery met and made no run of, and why."""

    path: Path
    reason: str
    failed: bool = False
    "Something is wrong with it (it cannot be read, its name contradicts itself); else it is simply no run."


def stem(path: Path) -> str:
    """Name of an image without its ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def writable(text: str | Path) -> str:
    """A path, or text with one in it, as it may stand in a table: bytes of a name that are not UTF-8 as \\xNN."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def label(text: str) -> str:
    """Text as it may stand in a key: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def variant_of(entities: Mapping[str, str], names: tuple[str, ...] = VARIANT_ENTITIES) -> str:
    """Entities that tell files apart, as they stand in a key: dir-AP_echo-2."""
    return "_".join(f"{label(name)}-{label(entities[name])}" for name in names if name in entities)


def dataset_name(folder: Path) -> str:
    """Name of a folder of runs; of a folder deep in a BIDS tree, that of the tree."""
    folder = folder.resolve()
    while folder.name == "func" or folder.name.startswith(("sub-", "ses-")):
        folder = folder.parent
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name)[:40].strip("-") or "data"


def checked_dataset(name: str) -> str:
    """The name, if it can stand in keys and shard names."""
    if not DATASET_PATTERN.fullmatch(name):
        raise InputError(f"dataset name {name!r}: expected 1 to 40 letters, digits, - and _; give --dataset NAME")
    return name
