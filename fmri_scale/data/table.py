"""The samples of one or several corpora as columns of numbers: all that the order of the data and a reader need.

In: opened corpora and a split. Out: a `SampleTable`, about 100 bytes a sample, with no Python object per sample, so
that every rank can hold the index of millions. Every row is checked against the format before anything is read: a
reader may then trust offsets and sizes.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from fmri_scale.data.request import ClipRequest
from fmri_scale.errors import DataError
from sharding.corpus import Corpus
from sharding.format import NPY_HEADER_BYTES, SEGMENT_FRAMES, is_key

SHARD_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}\.tar")
NUMBERS = {
    "bold_offset": np.int64,
    "frame_xxh3_offset": np.int64,
    "scale_offset": np.int64,
    "stats_offset": np.int64,
    "frame_xxh3_xxh3": np.uint64,
    "scale_xxh3": np.uint64,
    "stats_xxh3": np.uint64,
    "n_frames": np.int16,
    "unit": np.float32,
    "mean": np.float32,
    "sd": np.float32,
    "background": np.float32,
}
"Columns of the index that a reader needs, and the type in which they are kept."


@dataclass(frozen=True)
class Shard:
    """A tar of a corpus: which corpus, its name, size in bytes and sha256 as recorded."""

    corpus: int
    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class SampleTable:
    """Samples in rows, sorted by corpus, shard and key.

    Attributes
    ----------
    columns
        NUMBERS by name, each [rows].
    shard
        int32 [rows]: position in `shards`.
    dataset
        int16 [rows]: position in `datasets`.
    key_hash
        uint64 [rows]: xxh3_64 of the sample's key; what clip ids and clip boundaries are drawn from.
    keys
        Keys as an arrow array (compact; see `key`).
    """

    columns: dict[str, np.ndarray]
    shard: np.ndarray
    dataset: np.ndarray
    key_hash: np.ndarray
    keys: pa.Array
    shards: list[Shard]
    datasets: list[str]
    num_voxels: int
    corpus_ids: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Samples."""
        return int(self.shard.size)

    @property
    def n_frames(self) -> np.ndarray:
        """int16 [rows]: frames of each sample."""
        return self.columns["n_frames"]

    def key(self, row: int) -> str:
        """Name of a sample."""
        return self.keys[int(row)].as_py()

    def where(self, row: int) -> str:
        """Name a sample and its shard for a message."""
        return f"sample {self.key(row)} of shard {self.shards[int(self.shard[row])].name}"

    def requests(self, rows: np.ndarray, start_frames: np.ndarray) -> list[ClipRequest]:
        """Return what a reader must know of clips: rows and first frames int64 [n] to n requests of plain ints."""
        columns = {**self.columns, "shard": self.shard}
        taken = {name: columns[name][rows].tolist() for name in ClipRequest._fields if name in columns}
        taken.update(row=rows.tolist(), start_frame=start_frames.tolist())
        return [ClipRequest(*parts) for parts in zip(*(taken[name] for name in ClipRequest._fields), strict=True)]


def sample_table(corpora: Sequence[Corpus], split: str = "train") -> SampleTable:
    """Return the samples of a split ("all": every sample) of corpora that share one mask.

    Raises
    ------
    DataError
        Corpora of different masks or times, a split without samples, or an index row that breaks the format.
    """
    _check_alike(corpora)
    tables: list[pa.Table] = []
    shards: list[Shard] = []
    shard_columns: list[np.ndarray] = []
    for number, corpus in enumerate(corpora):
        table = corpus.index.table
        if split != "all":
            table = table.filter(pc.equal(table["split"], split))
        table = table.sort_by([("shard", "ascending"), ("key", "ascending")])
        mine = [Shard(number, s["name"], int(s["bytes"]), s["sha256"]) for s in corpus.meta["shards"]]
        shard_columns.append(_shard_numbers(table, mine, len(shards), corpus))
        tables.append(table)
        shards += mine
    whole = pa.concat_tables(tables).combine_chunks()
    if whole.num_rows == 0:
        where = ", ".join(str(corpus.path) for corpus in corpora)
        raise DataError(
            f"{where}: no sample in split {split!r}; choose another data.split, or build with more subjects"
        )
    dataset = whole["dataset"].combine_chunks().dictionary_encode()
    keys = _one_array(whole["key"])
    made = SampleTable(
        columns={name: whole[name].to_numpy().astype(kind) for name, kind in NUMBERS.items()},
        shard=np.concatenate(shard_columns),
        dataset=dataset.indices.to_numpy().astype(np.int16),
        key_hash=_hash_keys(keys),
        keys=keys,
        shards=shards,
        datasets=dataset.dictionary.to_pylist(),
        num_voxels=corpora[0].num_voxels,
        corpus_ids=[corpus.corpus_id for corpus in corpora],
    )
    _check_rows(made, whole)
    return made


def _check_alike(corpora: Sequence[Corpus]) -> None:
    first = corpora[0]
    for other in corpora[1:]:
        for name, mine, theirs in (
            ("mask", first.meta["mask"]["sha256"], other.meta["mask"]["sha256"]),
            ("TR", first.tr, other.tr),
        ):
            if mine != theirs:
                raise DataError(
                    f"{other.path}: its {name} ({theirs}) is not that of {first.path} ({mine}); "
                    f"corpora that are mixed must be built with one {name}"
                )


def _shard_numbers(table: pa.Table, shards: list[Shard], first: int, corpus: Corpus) -> np.ndarray:
    for shard in shards:
        if not SHARD_NAME.fullmatch(shard.name):
            raise DataError(f"{corpus.path}/corpus.json: shard name {shard.name!r} is not a plain file name")
    number = {shard.name: first + i for i, shard in enumerate(shards)}
    encoded = table["shard"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    unknown = [name for name in names if name not in number]
    if unknown:
        raise DataError(f"{corpus.path}/index.parquet: shard {unknown[0]!r} is not in corpus.json; restore the corpus")
    if not names:
        return np.empty(0, np.int32)
    return np.array([number[name] for name in names], np.int32)[encoded.indices.to_numpy()]


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _hash_keys(keys: pa.Array) -> np.ndarray:
    """Return xxh3_64 of every key, read from arrow's own buffers (a string object per key would cost 100 bytes)."""
    keys = keys.cast(pa.string())
    _, ends_buffer, text = keys.buffers()
    ends = np.frombuffer(ends_buffer, np.int32)[keys.offset : keys.offset + len(keys) + 1].tolist()
    view = memoryview(text)
    return np.fromiter((xxhash.xxh3_64_intdigest(view[a:b]) for a, b in itertools.pairwise(ends)), np.uint64, len(keys))


def _check_rows(table: SampleTable, index: pa.Table) -> None:
    """Raise DataError for the first row whose sizes, offsets, key or statistics cannot be."""
    n, v = table.n_frames.astype(np.int64), table.num_voxels
    shard_bytes = np.array([shard.num_bytes for shard in table.shards], np.int64)[table.shard]
    bad = {"n_frames": (n < 1) | (n > SEGMENT_FRAMES) | (index["n_frames"].to_numpy() != n)}
    planes = np.full(n.shape, NPY_HEADER_BYTES + 4 * v)
    sizes = {"bold": NPY_HEADER_BYTES + n * v, "frame_xxh3": NPY_HEADER_BYTES + 8 * n, "scale": planes, "stats": planes}
    for stem, expected in sizes.items():
        offset = index[f"{stem}_offset"].to_numpy()
        bad[f"{stem}_bytes"] = index[f"{stem}_bytes"].to_numpy() != expected
        bad[f"{stem}_offset"] = (offset < 0) | (offset > shard_bytes - expected)
    for name in ("unit", "mean", "sd", "background"):
        bad[name] = ~np.isfinite(table.columns[name])
    bad["unit"] |= table.columns["unit"] <= 0
    bad["sd"] |= table.columns["sd"] <= 0
    for name, rows in bad.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            raise DataError(
                f"index.parquet: {table.where(row)}: {name}={index[name][row].as_py()} cannot be in a corpus of "
                f"{v} voxels; restore the index or build the corpus again"
            )
    legal = pc.match_substring_regex(table.keys, r"^[A-Za-z0-9_-]{1,85}$")
    if not pc.all(legal).as_py():
        row = int(np.flatnonzero(~legal.to_numpy(zero_copy_only=False))[0])
        assert not is_key(table.key(row))
        raise DataError(f"index.parquet: {table.where(row)}: not a legal key; build the corpus again")
    if np.unique(table.key_hash).size != len(table):
        raise DataError(
            "index.parquet: two samples have the same key; corpora that are mixed need datasets of different names"
        )
