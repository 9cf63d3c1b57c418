"""The seal of a release: sha256 and size of every file, and a digest of the list itself.

`checksums.json` is compared byte for byte with the one way of writing its content, so that no byte of a release,
the list included, can change without an error that names the file.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fmri_scale.checkpoint.files import sha256
from fmri_scale.errors import CheckpointError
from fmri_scale.release.layout import CHECKSUMS, FORMAT_VERSION, OPTIONAL, REQUIRED, json_bytes, read_json, write_json

NOT_OURS = (".gitattributes", ".git", ".cache", ".gitignore", ".DS_Store")
"What a hub or a desktop puts beside a release; never read by us."


def seal(folder: Path) -> None:
    """Write `checksums.json` over all files of a folder that is complete."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    write_json(folder / CHECKSUMS, _sealed(files))


def verify(folder: Path, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Compare a release with its checksums; return the content of `checksums.json`.

    Parameters
    ----------
    folder : the release.
    only : names to hash; all when None. Presence of every file is checked in any case.

    Raises
    ------
    CheckpointError : a file that is missing, unlisted, or differs in size or content, by name.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; a release is made by `fmri-scale export`")
    listed = _read_list(folder)
    _check_names(folder, listed)
    for name in listed if only is None else only:
        path, expected = folder / name, listed[name]
        found = path.stat().st_size
        if found != expected["bytes"]:
            raise CheckpointError(f"{path}: {found} bytes, expected {expected['bytes']}; fetch the file again")
        if sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: content differs from its checksum; fetch the file again")
    return listed


def identity(folder: Path) -> str:
    """Return the digest that names a release whole: it changes with any byte of any file."""
    return read_json(folder / CHECKSUMS)["digest"]


def _sealed(files: dict[str, Any]) -> dict[str, Any]:
    body = {"format_version": FORMAT_VERSION, "algorithm": "sha256", "files": files}
    return {"digest": hashlib.sha256(json_bytes(body)).hexdigest(), **body}


def _read_list(folder: Path) -> dict[str, Any]:
    path = folder / CHECKSUMS
    if not path.exists() and (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{folder}: a training run, not a release; make one with `fmri-scale export`")
    content = read_json(path)
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {version} is newer than {FORMAT_VERSION}; install a newer fmri_scale")
    files = content.get("files")
    if not isinstance(files, dict) or path.read_bytes() != json_bytes(_sealed(files)):
        raise CheckpointError(f"{path}: damaged, it does not match its own digest; fetch the file again")
    return files


def _check_names(folder: Path, listed: dict[str, Any]) -> None:
    for name, entry in listed.items():
        if name not in (*REQUIRED, *OPTIONAL) or set(entry) != {"bytes", "sha256"}:
            raise CheckpointError(f"{folder / CHECKSUMS}: lists {name!r}, which is no file of a release")
    for name in (*REQUIRED, *listed):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: this file of the release is missing; fetch or export it again")
        if name not in listed:
            raise CheckpointError(f"{folder / name}: has no checksum in {CHECKSUMS}; fetch the release again")
    for path in sorted(folder.iterdir()):
        if path.name not in listed and path.name != CHECKSUMS and path.name not in NOT_OURS:
            raise CheckpointError(f"{path}: is not part of the release; move it elsewhere")
