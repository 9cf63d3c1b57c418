"""Pretraining of fMRI foundation models at scale, and the use of what was pretrained.

`fmri_scale.from_pretrained(folder)` loads a released checkpoint; it needs no training library.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained"]


def __getattr__(name: str) -> Any:
    if name == "from_pretrained":
        # by name: every layer imports this package, and none of those below may import the release
        return importlib.import_module("fmri_scale.release.load").from_pretrained
    raise AttributeError(f"module 'fmri_scale' has no attribute {name!r}")
