"""JSON sidecars of a BIDS tree, found by its inheritance principle: nearer and more particular ones go first.

In: an image and its entities. Out: what is asked of its sidecars. Each is read once while its folder is at hand, and no
folder is listed that the search for runs has listed.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sharding.discover.names import Name, read_name
from sharding.errors import InputError


class Sidecars:
    """JSON sidecars of functional series, from the root of a tree down to the image's folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[Path, list[tuple[Path, Name]]] = {}
        self._read: dict[Path, dict[str, Any]] = {}

    def saw(self, level: Path, files: Iterable[str]) -> None:
        """Take the names of a folder's files from whoever has listed it."""
        if len(self._known) > 64:  # folders come in order, so only the last ones and the root are asked again
            self._known = {k: v for k, v in self._known.items() if k == self._root}
            self._read.clear()
        paths = [level / name for name in sorted(files) if name.endswith("_bold.json") or name == "bold.json"]
        self._known[level] = [(path, read_name(path)) for path in paths]

    def tr(self, image: Path, entities: dict[str, str]) -> float | None:
        """RepetitionTime in s as the nearest sidecar that has it says; None where none does.

        Raises
        ------
        InputError
            A sidecar cannot be read or says no number.
        """
        for path in self._that_apply(image, entities):
            value = self._facts(path).get("RepetitionTime")
            if value is not None:
                try:
                    return float(value)
                except (TypeError, ValueError) as error:
                    raise InputError(f"{path}: RepetitionTime is {value!r}; expected seconds") from error
        return None

    def _that_apply(self, image: Path, entities: dict[str, str]) -> list[Path]:
        """Sidecars whose every entity the image has, nearest and most particular first."""
        found = []
        for level in image.parents:
            fitting = [(path, name) for path, name in self._in(level) if name.entities.items() <= entities.items()]
            found += [path for path, name in sorted(fitting, key=lambda item: -len(item[1].entities))]
            if level == self._root:
                break
        return found

    def _in(self, level: Path) -> list[tuple[Path, Name]]:
        if level not in self._known:  # above the folder that is searched
            try:
                self.saw(level, os.listdir(level))
            except OSError as error:
                remedy = "sidecars may be in it: make it readable or give --tr SECONDS"
                raise InputError(f"{level}: folder cannot be read ({error.strerror}); {remedy}") from error
        return self._known[level]

    def _facts(self, path: Path) -> dict[str, Any]:
        if path not in self._read:
            try:
                facts = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: sidecar cannot be read ({error}); repair it or give --tr SECONDS") from error
            if not isinstance(facts, dict):
                raise InputError(f"{path}: sidecar holds no object; repair it or give --tr SECONDS")
            self._read[path] = facts
        return self._read[path]
