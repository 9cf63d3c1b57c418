"""A BIDS name taken apart by bids2table, which knows the schema; the one place that imports it.

In: the path of a file. Out: its entities as text and as the schema reads them (run-01 and run-1 are one index).
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from sharding.errors import InputError


@dataclass(frozen=True)
class Name:
    """A taken-apart name."""

    entities: dict[str, str]
    "Entity to text, in the order of the name."
    values: dict[str, Any]
    "Entity to value: whole numbers where the schema has an index."
    repeated: str
    "An entity that stands twice in the name, or nothing."


def read_name(path: Path) -> Name:
    """Take the name of a file apart.

    Raises
    ------
    InputError
        bids2table is not installed.
    """
    return _taken_apart(_library(), path.name.partition(".")[0])


@lru_cache(maxsize=256)
def _taken_apart(library: ModuleType, stem: str) -> Name:
    """A name without its ending: an image and its sidecar share it."""
    parsed = library.parse_bids_entities(Path(stem))
    entities = {key: text for key, text in parsed.items() if key not in ("datatype", "suffix", "ext")}
    valid, other = library.validate_bids_entities(entities)
    keys = [part.split("-", 1)[0] for part in stem.split("_") if "-" in part]
    repeated = next((key for key in keys if keys.count(key) > 1), "")
    return Name(entities, {**valid, **other}, repeated)


@lru_cache(maxsize=1)
def _library() -> ModuleType:
    try:
        import bids2table
    except ImportError as error:
        raise InputError(
            "reading BIDS derivatives needs bids2table: pip install 'fmri-scale[bids]' (Python 3.11 or newer); "
            "or go by file names alone with --layout files, or give a table"
        ) from error
    # A value that the schema does not know is taken as it stands; its warnings, one a file, would drown the rest.
    logging.getLogger("bids2table").setLevel(logging.ERROR)
    return bids2table
