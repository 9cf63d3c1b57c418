"""Small file operations that survive a power cut: write aside, flush to disk, rename; and checksums.

Every function takes paths and plain bytes or text; nothing here knows what a checkpoint is.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

_BLOCK = 1 << 22


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Put `text` at `path` so that a reader sees the old content or the new, never a part.

    Parameters
    ----------
    durable : also wait until content and name are on the disk.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(aside, path)
    if durable:
        sync(path.parent)


def write_json(path: Path, content: Any, durable: bool = True) -> None:
    """Put `content` at `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n", durable)
