"""Releases on the Hugging Face hub: push a folder as one commit, fetch one as a folder of this machine.

`huggingface_hub` moves the bytes (the extra `hub`; nothing else here needs it) and keeps what it fetched; the
release's own checksums are compared after every transfer, in both directions. HF_ENDPOINT and HF_TOKEN are honoured.
"""

import hashlib
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from fmri_scale.checkpoint.files import sha256
from fmri_scale.errors import CheckpointError
from fmri_scale.release import checksums, layout
from sharding.extras import remedy

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
WAIT_S = 30.0
"Longest wait for the hub to say which version a file has."


def is_name(source: str) -> bool:
    """Whether a text has the form organisation/name of a hub."""
    return NAME.fullmatch(source) is not None


def download(
    name: str, revision: str | None = None, cache_dir: str | Path | None = None, token: str | None = None
) -> Path:
    """Return the folder of a release on the hub, fetching what this machine does not have.

    Raises
    ------
    CheckpointError : no such repository or revision, no connection, or a repository that is not a release.
    """
    hub = _hub()
    where = name if revision is None else f"{name} at {revision}"
    try:
        folder = hub.snapshot_download(
            repo_id=name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            endpoint=os.environ.get("HF_ENDPOINT"),
            allow_patterns=[*layout.REQUIRED, *layout.OPTIONAL, layout.CHECKSUMS],
            etag_timeout=WAIT_S,
        )
    except _failures(hub) as error:
        raise CheckpointError(f"{where}: cannot be fetched from the hub: {_first_line(error)}") from error
    if not (Path(folder) / layout.CHECKSUMS).is_file():
        raise CheckpointError(f"{where}: the repository is no release of fmri_scale (no {layout.CHECKSUMS})")
    return Path(folder)


def push_to_hub(
    folder: str | Path,
    name: str,
    *,
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a release as one commit; return the commit, which `from_pretrained(name, revision=...)` takes.

    Parameters
    ----------
    folder : a release; its checksums are compared first, and the uploaded files with them afterwards.
    name : organisation/name; made if it does not exist.
    private : of a repository that is made.
    tag : name for this version, for example v1.
    token : of an account that may write; the one stored by `hf auth login` if None.

    Raises
    ------
    CheckpointError : the folder is no sound release, the hub refuses, or what arrived differs.
    """
    folder = Path(folder)
    listed = checksums.verify(folder)
    if not is_name(name):
        raise CheckpointError(f"{name!r}: expected organisation/name, for example my-lab/brain-base")
    hub = _hub()
    names = [*listed, layout.CHECKSUMS]
    try:
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
        api.create_repo(name, private=private, exist_ok=True)
        there = api.list_repo_files(name)
        operations = [hub.CommitOperationAdd(file, str(folder / file)) for file in names]
        operations += [hub.CommitOperationDelete(old) for old in there if old not in (*names, *checksums.NOT_OURS)]
        summary = message or f"Release {checksums.identity(folder)[:12]}"
        commit = api.create_commit(name, operations, commit_message=summary).oid
        _check_arrival(api, name, commit, folder, names)
        if tag is not None:
            api.create_tag(name, tag=tag, revision=commit)
    except _failures(hub) as error:
        raise CheckpointError(f"{name}: the hub did not take the release: {_first_line(error)}") from error
    return commit


def _check_arrival(api: Any, name: str, commit: str, folder: Path, names: list[str]) -> None:
    """Compare what lies at a commit with the folder: size and sha256 of large files, git's own hash of small ones."""
    there = {entry.path: entry for entry in api.list_repo_tree(name, revision=commit)}
    for file in names:
        entry, path = there.get(file), folder / file
        lfs = getattr(entry, "lfs", None)
        found = lfs.sha256 if lfs else getattr(entry, "blob_id", None)
        if found != (sha256(path) if lfs else _git_hash(path.read_bytes())):
            raise CheckpointError(f"{name}: {file} at commit {commit[:12]} is not what was sent; push again")


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise CheckpointError(f"models by name come from the hub: {remedy(error) or error}") from error
    return huggingface_hub


def _failures(hub: ModuleType) -> tuple[type[BaseException], ...]:
    """What its calls raise: its own errors, those of whatever HTTP library carries it, and of the disk."""
    names = ("EntryNotFoundError", "RevisionResolutionError", "CachedRepoTreeNotFoundError")
    own = [getattr(hub.errors, name) for name in names if hasattr(hub.errors, name)]
    return (*own, *hub.errors.HfHubHTTPError.__bases__, OSError, ValueError)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
