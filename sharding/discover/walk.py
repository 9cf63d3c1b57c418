"""Walk a tree of folders: sorted, following links, each folder once, unreadable ones named.

Out: folders with the names of their files. A link that leads back into the tree ends there; a folder that cannot be
read is reported as left out, and everything else is still found.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sharding.discover.source import LeftOut
from sharding.errors import InputError


def walk(
    folder: Path, left_out: list[LeftOut], enter: Callable[[Path], bool] = lambda folder: True
) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder from `folder` down with its files' names, both sorted; hidden ones are passed over.

    Parameters
    ----------
    folder
        Where to start.
    left_out
        Receives the folders that cannot be read.
    enter
        Asked before a folder below the first is opened.

    Raises
    ------
    InputError
        The first folder itself cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            place = os.stat(here)
            if (place.st_dev, place.st_ino) in seen:
                continue
            seen.add((place.st_dev, place.st_ino))
            files, folders = _entries(here)
        except OSError as error:
            reason = f"folder cannot be read ({error.strerror})"
            if here == folder:
                raise InputError(f"{here}: {reason}") from error
            left_out.append(LeftOut(here, reason, failed=True))
            continue
        yield here, files
        waiting += [here / name for name in reversed(folders) if enter(here / name)]


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, each sorted."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(files), sorted(folders)
