"""Clones of published code, by path."""

import subprocess
from pathlib import Path


def revision(folder: Path) -> str:
    """Return a clone's commit, as far as git tells it."""
    git = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    said = subprocess.run(git, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"
