"""The record that makes a checkpoint whole: every file with its size and SHA-256.

Written last inside the folder, before the folder gets its name; a folder without a manifest that verifies is
no checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from fmri_scale.checkpoint import files, layout
from fmri_scale.errors import CheckpointError

SCHEMA_VERSION = 1


def describe(path: Path) -> dict[str, Any]:
    """Return the size in bytes and the SHA-256 of a file as it lies on the disk, after flushing it."""
    files.sync(path)
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def write(folder: Path, step: int, entries: dict[str, dict[str, Any]]) -> None:
    """Write the manifest of a folder; `entries` maps paths relative to it to their `describe`."""
    content = {"schema_version": SCHEMA_VERSION, "step": step, "files": dict(sorted(entries.items()))}
    files.write_json(folder / layout.MANIFEST, content)


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises
    ------
    CheckpointError : it is missing, no JSON, of a newer schema, or of another step than the folder's name says.
    """
    path = folder / layout.MANIFEST
    try:
        content = json.loads(path.read_text())
        version, step, listed = content["schema_version"], content["step"], content["files"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no {layout.MANIFEST}; it was not written to its end") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's manifest ({error})") from error
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"{path}: schema {version} is newer than {SCHEMA_VERSION}; use a newer fmri_scale")
    named = layout.as_checkpoint(folder)
    if named is not None and named.step != step:
        raise CheckpointError(f"{folder}: the manifest is of step {step}; the folder was renamed")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{path}: lists no files")
    return content


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every listed file is there with its size and checksum."""
    for name, entry in read(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: listed in {layout.MANIFEST} but missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path}: {size} bytes, expected {entry['bytes']}")
        if files.sha256(path) != entry["sha256"]:
            raise CheckpointError(f"{path}: checksum differs from {layout.MANIFEST}; the file is damaged")
