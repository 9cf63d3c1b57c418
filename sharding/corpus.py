"""Open a corpus: its facts, its mask and its index, checked against each other.

In: the folder made by `fmri-shards build`. Out: a `Corpus`. No sample is read here; readers take a sample by byte
range from `shard_path(name)` with the offsets of the index.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding.errors import CorpusError, ShardingError
from sharding.format import INDEX_SCHEMA, SCHEMA_VERSION
from sharding.mask import mask_sha256
from sharding.mask_image import read_mask

CHECKED_FILES = ("mask.nii.gz", "runs.parquet", "index.parquet")
"Files whose bytes and sha256 stand in corpus.json under `files`, in the order in which they are written."

SEAL = '"sealed": "'
"How the last entry of corpus.json begins: the sha256 of the whole file with this value written as zeros."

BLANK = "0" * 64


class Columns(Mapping[str, np.ndarray]):
    """The columns of an index as numpy arrays, each read when it is first asked for.

    Millions of samples have tens of millions of strings; a reader that needs none of them pays for none.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        facts = pq.read_metadata(file)
        self.num_rows, self._names = facts.num_rows, tuple(facts.schema.to_arrow_schema().names)
        self._made: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self.read(name).to_numpy()
        return self._made[name]

    def read(self, name: str, dictionary: bool = False) -> pa.ChunkedArray:
        """Return a column as arrow, kept nowhere; `dictionary`: text as positions in a list of the different ones."""
        try:
            with pq.ParquetFile(self.file, read_dictionary=[name] if dictionary else None) as table:
                return table.read(columns=[name], use_threads=False)[name]
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{self.file}: cannot be read ({error}); build the corpus again") from error

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the one that Mapping gives would read the column

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Corpus:
    """An opened corpus.

    Attributes
    ----------
    path
        The folder.
    meta
        corpus.json.
    mask
        bool (96, 96, 96): the voxels stored.
    index
        Column name to numpy array with a row per sample (INDEX_SCHEMA; text columns are object arrays of str).
    """

    path: Path
    meta: dict[str, Any]
    mask: np.ndarray
    index: Columns

    @property
    def corpus_id(self) -> str:
        """Hash of everything that decides what a reader gets."""
        return self.meta["corpus_id"]

    @property
    def tr(self) -> float | None:
        """Repetition time of every run in s; None where runs keep their own (index column tr)."""
        return self.meta["tr"]

    @property
    def num_voxels(self) -> int:
        """V, the stored voxels."""
        return int(self.mask_index.size)

    @functools.cached_property
    def mask_index(self) -> np.ndarray:
        """int64 (V,): position of each stored voxel in the flattened (C order) grid."""
        return np.flatnonzero(self.mask).astype(np.int64)

    def shard_path(self, name: str) -> Path:
        """File of a shard as named in the index."""
        return self.path / "shards" / name

    def __len__(self) -> int:
        """Samples."""
        return self.index.num_rows


def open_corpus(path: str | Path, check_shards: bool = True) -> Corpus:
    """Open a corpus and check that its parts belong together.

    Parameters
    ----------
    path
        Folder made by `fmri-shards build`.
    check_shards
        Also look that every shard is there with its recorded size (a stat per shard).

    Raises
    ------
    CorpusError
        The folder is missing, unfinished, of a newer schema, or its parts disagree.
    """
    path = Path(path)
    meta = _read_meta(path)
    mask = _read_mask(path, meta)
    corpus = Corpus(path, meta, mask, _read_index(path, meta))
    if check_shards:
        _check_shards(corpus)
    return corpus


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CorpusError(f"{path}: no such corpus; make one with: fmri-shards build INPUT... --out {path}")
    file = path / "corpus.json"
    if not file.is_file():
        begun = (path / ".build").is_dir()
        hint = "its build is not finished: run the same fmri-shards build again" if begun else "is it the right folder?"
        raise CorpusError(f"{path}: not a whole corpus (no corpus.json); {hint}")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        version = int(meta["schema_version"])
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{file}: cannot be read ({error}); build the corpus again") from error
    if version > SCHEMA_VERSION:
        raise CorpusError(f"{file}: schema version {version}, this program reads up to {SCHEMA_VERSION}; update it")
    _check_facts(file, meta)
    return meta


def _check_facts(file: Path, meta: dict[str, Any]) -> None:
    """Refuse a corpus.json that lacks what opening it needs."""
    try:
        _ = meta["corpus_id"], meta["tr"], meta["mask"]["sha256"], meta["totals"]["samples"]
        _ = [(shard["name"], shard["bytes"]) for shard in meta["shards"]]
    except KeyError as error:
        raise CorpusError(f"{file}: {error} is missing; restore it or build the corpus again") from error
    except (TypeError, IndexError) as error:
        raise CorpusError(f"{file}: not the facts of a corpus ({error}); restore it or build it again") from error


def _read_mask(path: Path, meta: dict[str, Any]) -> np.ndarray:
    file = path / "mask.nii.gz"
    try:
        mask = read_mask(file)
    except ShardingError as error:
        raise CorpusError(f"{error}; build the corpus again") from error
    if mask_sha256(mask) != meta["mask"]["sha256"]:
        raise CorpusError(f"{file}: not the mask that corpus.json names; restore it or build the corpus again")
    return mask


def _read_index(path: Path, meta: dict[str, Any]) -> Columns:
    file = path / "index.parquet"
    try:
        columns = Columns(file)
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{file}: cannot be read ({error}); build the corpus again") from error
    missing = [name for name in INDEX_SCHEMA.names if name not in columns]
    if missing:
        raise CorpusError(f"{file}: columns missing: {', '.join(missing)}; build the corpus again")
    if columns.num_rows != meta["totals"]["samples"]:
        raise CorpusError(f"{file}: {columns.num_rows} samples, corpus.json says {meta['totals']['samples']}")
    return columns


def _check_shards(corpus: Corpus) -> None:
    for shard in corpus.meta["shards"]:
        file = corpus.shard_path(shard["name"])
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            raise CorpusError(f"{file}: shard is missing; restore it or build the corpus again")
        if found != shard["bytes"]:
            raise CorpusError(f"{file}: {found} bytes, corpus.json says {shard['bytes']}; restore it or build again")


def seal(text: str) -> bytes:
    """Return corpus.json (a JSON object as text) with a checksum of itself as its last entry."""
    whole = f'{text.rstrip().removesuffix("}").rstrip()},\n {SEAL}{BLANK}"\n}}\n'
    return whole.replace(f"{SEAL}{BLANK}", f"{SEAL}{hashlib.sha256(whole.encode()).hexdigest()}").encode()


def is_sealed(data: bytes) -> bool | None:
    """Whether the checksum that corpus.json carries of itself is right; None where it carries none."""
    start = data.rfind(SEAL.encode())
    if start < 0:
        return None
    start += len(SEAL)
    blank = data[:start] + BLANK.encode() + data[start + len(BLANK) :]
    return hashlib.sha256(blank).hexdigest().encode() == data[start : start + len(BLANK)]
