"""A fresh virtual environment as `pip install fmri-scale` leaves it: the built wheel and what it requires, no extras.

The wheel is built from a copy of this tree; the libraries are those of the environment the tests run in, linked one by
one as the wheel's own metadata asks for them, so nothing is fetched and nothing else can be imported.
"""

import email
import functools
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("fmri_scale", "sharding", "pyproject.toml", "README.md", "LICENSE")
NEVER = {"triton"}
"Required by CUDA builds of torch, but never by us."


def run_slim(body: str, *args: object, code: int = 0) -> str:
    """Run a script in the environment, far from this tree; return what it printed (where it fails, on stderr)."""
    with tempfile.TemporaryDirectory() as elsewhere:
        command = [_environment()[1], "-I", "-c", body, *map(str, args)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=elsewhere)
    assert process.returncode == code, process.stderr
    return process.stderr if code else process.stdout


@functools.cache
def _environment() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """Return the environment's folder, which goes with this process, and its interpreter."""
    kept = tempfile.TemporaryDirectory(prefix="slim-")
    folder = Path(kept.name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=120)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(_wheel(folder)) as wheel:
        wheel.extractall(site)
        metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        required = email.message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist", [])
    for name in sorted(_closure(required)):
        _link(importlib.metadata.distribution(name), site)
    return kept, folder / "venv" / "bin" / "python"


def _wheel(folder: Path) -> Path:
    """Build our wheel from a copy, since setuptools leaves things beside its sources."""
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(place, copy / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", folder, copy], check=True, capture_output=True, timeout=300)
    return next(folder.glob("fmri_scale-*.whl"))


def _closure(requirements: Iterable[str]) -> set[str]:
    """Return the distributions that requirements ask for, extras left out, and what these ask for in turn."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in found | NEVER:
            found.add(name)
            waiting += importlib.metadata.requires(name) or []
    return found


def _link(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """Link the top-level files and folders of a distribution into a site-packages folder."""
    tops = {Path(file.parts[0]) for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
