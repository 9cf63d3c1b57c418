"""Keyed pseudonyms: a corpus in which nothing that is written names a person, a session or a file.

In: runs, what was left out, and a secret key. Out: the same with every identifier replaced by a keyed hash (BLAKE2b),
the same for the same key, so that a corpus can be added to and tables of targets can be translated by whoever has the
key. The key and the translation never enter the corpus. Images themselves are not changed: a series of 2 mm within the
brain has no face, but is still a person's.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sharding.discover.source import LeftOut, RunSource, stem, writable
from sharding.errors import InputError
from sharding.keys import run_label
from sharding.write import write_whole

KEY_BYTES = 16
"Fewest bytes of a key file: fewer could be guessed."

MAP_COLUMNS = ("dataset", "subject", "session", "run", "variant", "family")

_PATH_LIKE = re.compile(r"\S*(?:/|\\|\.nii|\.json|\.tsv|\.csv|\.txt|\.parquet)\S*")
_ENTITY = re.compile(r"(?<![A-Za-z])(sub|ses|run|acq|dir|rec|ce|echo)-[^\s_/\\,;:()]+")


class Pseudonyms:
    """Replaces identifiers under one key.

    Parameters
    ----------
    key_file
        Any KEY_BYTES bytes or more, such as from: head -c 32 /dev/urandom > KEYFILE

    Raises
    ------
    InputError
        It cannot be read or is too short.
    """

    def __init__(self, key_file: Path) -> None:
        try:
            secret = key_file.read_bytes()
        except OSError as error:
            remedy = f"make one with: head -c 32 /dev/urandom > {key_file}"
            raise InputError(f"{key_file}: key cannot be read ({error.strerror}); {remedy}") from error
        if len(secret) < KEY_BYTES:
            raise InputError(f"{key_file}: {len(secret)} bytes, a key has {KEY_BYTES} or more that nobody can guess")
        self._key = hashlib.blake2b(secret, digest_size=32, person=b"fmri-shards").digest()

    @property
    def check(self) -> str:
        """What a corpus records of the key: enough to see whether another is the same, of no other use."""
        return self._hash("check", 16)

    def run(self, source: RunSource) -> RunSource:
        """A run under pseudonyms; the path by which it is read stays, and is not written anywhere."""
        subject = self._hash("subject", 16, source.dataset, source.subject)
        within = {
            name: lead + self._hash(name, 8, source.dataset, source.subject, value) if value else ""
            for name, lead, value in (
                ("session", "", source.session),
                ("run", "", source.run),
                ("variant", "var-", source.variant),
            )
        }
        family = self._hash("family", 16, source.dataset, source.family) if source.family else ""
        hidden = (source.subject, source.session, source.family, source.path.name)
        alias = f"file-{self._hash('file', 16, str(source.path.resolve()))}"
        return replace(source, subject=subject, family=family, alias=alias, hidden=hidden, **within)  # type: ignore[arg-type]

    def left_out(self, item: LeftOut) -> LeftOut:
        """What was left out, without its name."""
        alias = Path(f"file-{self._hash('file', 16, str(item.path.resolve()))}")
        return replace(item, path=alias, reason=without_names(item.reason, paths=[item.path]))

    def _hash(self, kind: str, digits: int, *parts: str) -> str:
        text = "\0".join((kind, *parts)).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, key=self._key, digest_size=digits // 2).hexdigest()


def without_names(reason: str, hidden: Iterable[str] = (), alias: str = "FILE", paths: Iterable[Path] = ()) -> str:
    """A reason without paths, names of files, entities, and texts to be hidden.

    Parameters
    ----------
    reason
        The text.
    hidden
        Texts to be hidden.
    alias
        Stands for every path.
    paths
        That the reason may name: a path with blanks cannot be told from the words about it.
    """
    for text in sorted(_texts_of(paths), key=len, reverse=True):
        reason = reason.replace(text, "/")  # which is path-like
    for text in sorted(filter(None, hidden), key=len, reverse=True):
        if len(text) > 3:  # shorter ones are ordinary numbers; as entities they go below
            reason = reason.replace(text, "***")
    return _ENTITY.sub(r"\1-***", _PATH_LIKE.sub(alias, reason))


def reason_of(source: RunSource, reason: str) -> str:
    """A reason as it may be written about a run."""
    if not source.alias:
        return reason
    paths = filter(None, (source.path, source.mask, source.confounds, source.motion))
    return without_names(reason, source.hidden, source.alias, paths)


def _texts_of(paths: Iterable[Path]) -> set[str]:
    """Paths, and whatever of them has a blank in it, as they stand in reasons: plain, or quoted as Python does."""
    wholes = {form for path in paths for form in (path, path.absolute(), path.resolve())}
    parts = {str(part) for path in wholes for part in (*path.parents, *path.parts, stem(path))}
    texts = {str(path) for path in wholes} | {part for part in parts if any(map(str.isspace, part))}
    return texts | {repr(text)[1:-1] for text in texts}


def map_bytes(before: Sequence[RunSource], after: Sequence[RunSource]) -> bytes:
    """Table of who is who, TSV: for the keeper of the key, not for the corpus."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(["path", "label", *MAP_COLUMNS, *(f"anonymous_{name}" for name in MAP_COLUMNS)])
    for one, other in zip(before, after, strict=True):
        names = [getattr(run, name) for run in (one, other) for name in MAP_COLUMNS]
        table.writerow([one.path, run_label(other), *names])
    return writable(text.getvalue()).encode()


def write_map(path: Path, before: Sequence[RunSource], after: Sequence[RunSource]) -> None:
    """Write the table of who is who, readable by its owner alone."""
    write_whole(path, map_bytes(before, after), mode=0o600)
