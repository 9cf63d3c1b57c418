"""What made a checkpoint: versions of the packages that decide numbers, and the commit of this program."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from fmri_scale import __version__

PACKAGES = ("torch", "deepspeed", "triton", "numpy", "webdataset", "mamba-ssm")


def software_versions() -> dict[str, str]:
    """Return name -> version of what is installed, with `git_commit` where the program runs from a clone."""
    found = {"fmri_scale": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git_commit()
    return {**found, "git_commit": commit} if commit else found


def _git_commit() -> str:
    """Return the commit of the clone this file lies in, `-dirty` appended for changed files; empty without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
