"""The names in a release folder, and how a folder comes into being: whole, or not at all.

A release is a folder of plain files: weights as safetensors, JSON, a NIfTI mask, a model card. This file knows
their names, reads and writes JSON, and gives a folder that is filled aside and renamed when complete. It knows
nothing of what the files mean.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmri_scale.checkpoint.files import sync
from fmri_scale.errors import CheckpointError

FORMAT_VERSION = 1
"Raised when a reader of the former version could misread a release."
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PREPROCESSING = "preprocessing.json"
MASK = "mask.nii.gz"
REFERENCE = "reference.json"
TRAINING = "training.json"
CARD = "README.md"
CHECKSUMS = "checksums.json"
HEADS = "heads.safetensors"
IMPORTED = "import.json"
REQUIRED = (WEIGHTS, CONFIG, PREPROCESSING, MASK, REFERENCE, TRAINING, CARD)
OPTIONAL = (HEADS, IMPORTED)
MAX_JSON_BYTES = 64 * 2**20
"A JSON file of a release is small; anything larger is not one."


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; a CheckpointError names a file that is absent, damaged or too large."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes are too many for this file")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: this file of the release is missing; fetch or export it again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({type(error).__name__}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object with keys, found {type(content).__name__}")
    return content


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return the one form in which a release writes JSON; non-finite numbers are a ValueError, not invalid JSON."""
    return (json.dumps(content, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file of a folder that is still being filled."""
    path.write_bytes(json_bytes(content))


@contextlib.contextmanager
def staged_folder(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `out`; when the block ends without error it becomes `out`, flushed to disk.

    Raises
    ------
    CheckpointError : `out` is a file, or a folder with something in it and `overwrite` is off, or a folder that
        is not a release (never deleted, whatever `overwrite` says).
    """
    out = Path(os.path.abspath(out))
    check_vacant(out, overwrite)
    aside = out.with_name(f".{out.name}.partial.{os.getpid()}")
    retired = out.with_name(f".{out.name}.replaced.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        for path in sorted(aside.iterdir()):
            path.chmod(_usual_mode())  # safetensors makes files that only their owner can read
            sync(path)
        sync(aside)
        if out.is_dir() and any(out.iterdir()):
            out.rename(retired)
        aside.rename(out)
        sync(out.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_vacant(out: Path, overwrite: bool) -> None:
    """Raise CheckpointError unless a release may be put at `out`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"{out}: is a file; name a folder for the release")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{out}: the folder is not empty; name another one or add --overwrite")
    if not (out / CONFIG).is_file() or not (out / WEIGHTS).is_file():
        raise CheckpointError(f"{out}: holds something that is not a release, so --overwrite does not delete it")


def _usual_mode() -> int:
    """Return the permissions that this process gives to a new file."""
    masked = os.umask(0)
    os.umask(masked)
    return 0o666 & ~masked
