"""A step of an experiment: done once, known to be done by a file that says with which settings.

`once(folder, key, work)` runs `work` unless the folder's mark says that it was done with the same key. A mark of
another key is an error: results of two settings must not mix. The mark is written last and whole, so a killed step is
repeated.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from fmri_scale.checkpoint.files import write_json
from fmri_scale.errors import ConfigError
from fmri_scale.log import get_logger

MARK = "step.json"

_log = get_logger(__name__)


def digest(*parts: str) -> str:
    """Key of settings."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_done(folder: Path, key: str) -> bool:
    """Whether a step was done.

    Raises
    ------
    ConfigError
        It was done with other settings.
    """
    mark = folder / MARK
    if not mark.is_file():
        return False
    found = json.loads(mark.read_text(encoding="utf-8"))["key"]
    if found != key:
        raise ConfigError(f"{folder}: holds results of other settings; give another --out, or delete this folder")
    return True


def once(folder: Path, key: str, work: Callable[[], None]) -> bool:
    """Do a step that is not done; return whether it was done now."""
    if is_done(folder, key):
        return False
    _log.info("%s", folder)
    folder.mkdir(parents=True, exist_ok=True)
    work()
    write_json(folder / MARK, {"key": key})
    return True
