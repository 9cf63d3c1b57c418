"""Run Python in a process that has only the libraries a user of released models needs.

Everything installed here that is not one of CORE, or required by one of them, cannot be imported there.
"""

import functools
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

CORE = ("torch", "numpy", "nibabel", "safetensors", "nilearn", "omegaconf")
OURS = {"fmri_scale", "sharding", "tests"}
NEVER = {"triton"}
"Required by CUDA builds of torch, but never by us."


def forbidden_modules() -> list[str]:
    """Return the top-level modules of all distributions outside the core and what it requires."""
    allowed, waiting = set(), [_normal(name) for name in CORE]
    while waiting:
        name = waiting.pop()
        if name in allowed or name in NEVER:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        allowed.add(name)
        waiting += [_normal(re.split(r"[ ;<>=!~\[(]", r, maxsplit=1)[0]) for r in required if "extra ==" not in r]
    kept = OURS | set(sys.stdlib_module_names)
    return sorted(m for m, owners in _owners().items() if m not in kept and not owners & allowed)


@functools.cache
def _owners() -> dict[str, set[str]]:
    """Return the distributions that hold each top-level module (as Python 3.10 does not tell for all wheels)."""
    owners: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or []:
            module = file.parts[0].removesuffix(".py") if len(file.parts) == 1 else file.parts[0]
            if module.isidentifier() and (file.suffix == ".py" or file.suffix == ".so"):
                owners.setdefault(module, set()).add(_normal(distribution.metadata["Name"]))
    return owners


def run_slim(body: str, *args: object) -> str:
    """Run a script in such a process; return what it printed."""
    block = f"import sys\nfor name in {forbidden_modules()!r}: sys.modules[name] = None\n"
    command = [sys.executable, "-c", block + body, *map(str, args)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert process.returncode == 0, process.stderr
    return process.stdout


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
