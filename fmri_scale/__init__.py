"""Pretraining of fMRI foundation models at scale, and the use of what was pretrained.

`fmri_scale.from_pretrained(folder)` loads a released checkpoint; it needs no training library.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained"]


def __getattr__(name: str) -> Any:
    if name == "from_pretrained":
        from fmri_scale.release.load import from_pretrained

        return from_pretrained
    raise AttributeError(f"module 'fmri_scale' has no attribute {name!r}")
