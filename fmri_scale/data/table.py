"""The samples of one or several corpora as columns of numbers: all that the order of the data and a reader need.

In: opened corpora and a split. Out: a `SampleTable`, about 100 bytes a sample, with no Python object per sample, so
that every rank can hold the index of millions. Every row is checked against the format before anything is read: a
reader may then trust offsets and sizes.
"""

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import xxhash

from fmri_scale.data.request import ClipRequest
from fmri_scale.errors import DataError
from sharding.corpus import Corpus
from sharding.format import KEY_PATTERN, NPY_HEADER_BYTES, SEGMENT_FRAMES

KEY_BYTES = re.compile(KEY_PATTERN.pattern.encode())
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
    parts = [_Part(number, corpus, split) for number, corpus in enumerate(corpora)]
    if not any(part.rows.size for part in parts):
        where = ", ".join(str(corpus.path) for corpus in corpora)
        raise DataError(
            f"{where}: no sample in split {split!r}; choose another data.split, or build with more subjects"
        )
    keys = pa.concat_arrays([part.text("key") for part in parts])
    datasets = sorted({name for part in parts for name in part.datasets})
    first = np.cumsum([0] + [len(part.shards) for part in parts])
    table = SampleTable(
        columns={name: np.concatenate([part.numbers(name, kind) for part in parts]) for name, kind in NUMBERS.items()},
        shard=np.concatenate([part.shard + begin for part, begin in zip(parts, first, strict=False)]).astype(np.int32),
        dataset=np.concatenate([part.dataset_in(datasets) for part in parts]),
        key_hash=_hash_keys(keys),
        keys=keys,
        shards=[shard for part in parts for shard in part.shards],
        datasets=datasets,
        num_voxels=corpora[0].num_voxels,
        corpus_ids=[corpus.corpus_id for corpus in corpora],
    )
    _check_rows(table, parts)
    pa.default_memory_pool().release_unused()
    return table


class _Part:
    """The rows of one corpus that belong to a split, read column by column so that little is in memory at a time."""

    def __init__(self, number: int, corpus: Corpus, split: str) -> None:
        self.corpus = corpus
        self.shards = [Shard(number, s["name"], int(s["bytes"]), s["sha256"]) for s in corpus.meta["shards"]]
        for shard in self.shards:
            if not SHARD_NAME.fullmatch(shard.name):
                raise DataError(f"{corpus.path}/corpus.json: shard name {shard.name!r} is not a plain file name")
        place = {shard.name: i for i, shard in enumerate(self.shards)}
        used, code = self._encoded("shard")
        unknown = [name for name in used if name not in place]
        if unknown:
            raise DataError(
                f"{corpus.path}/index.parquet: shard {unknown[0]!r} is not in corpus.json; restore the corpus"
            )
        shard_of_row = np.array([place[name] for name in used] or [0], np.int32)[code]
        splits, code = self._encoded("split")
        wanted = np.array([split in ("all", name) for name in splits] or [False])[code]
        rows = np.flatnonzero(wanted)
        self.rows = rows[np.argsort(shard_of_row[rows], kind="stable")].astype(np.int64)
        self.shard = shard_of_row[self.rows]
        names, code = self._encoded("dataset")
        self._dataset_names, self._dataset = names, code[self.rows]
        self.datasets = {names[i] for i in np.unique(self._dataset).tolist()}

    def _encoded(self, name: str) -> tuple[list[str], np.ndarray]:
        """Return the different values of a text column, and each row's place among them."""
        array = self._whole(name, dictionary=True)
        return array.dictionary.to_pylist(), _values(array.indices)

    def _whole(self, name: str, dictionary: bool = False) -> pa.Array:
        """Return a column of all rows as one array without gaps."""
        array = _one_array(self.corpus.index.read(name, dictionary))
        if array.null_count:
            raise DataError(f"{self.corpus.path}/index.parquet: column {name} has gaps; build the corpus again")
        return array

    def text(self, name: str) -> pa.Array:
        """Return a text column of the rows.

        By hand, since arrow's own `take` imports pyarrow.compute, which takes longer than all else here.
        """
        text, ends = _text(self._whole(name))
        kept = io.BytesIO()
        for row in self.rows.tolist():
            kept.write(text[ends[row] : ends[row + 1]])
        new_ends = np.concatenate([[0], np.cumsum(np.diff(ends)[self.rows])]).astype(np.int32)
        return pa.StringArray.from_buffers(self.rows.size, pa.py_buffer(new_ends), pa.py_buffer(kept.getvalue()))

    def numbers(self, name: str, kind: type | None = None) -> np.ndarray:
        """Return a column of numbers of the rows, as it is or in another type."""
        values = _values(self._whole(name))[self.rows]
        return values if kind is None else values.astype(kind)

    def dataset_in(self, names: list[str]) -> np.ndarray:
        """Return each row's dataset as its place in `names`."""
        places = np.array([names.index(n) if n in names else -1 for n in self._dataset_names] or [-1], np.int16)
        return places[self._dataset]


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


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _values(array: pa.Array) -> np.ndarray:
    """Return an array of numbers without gaps as numpy sees it; arrow's own way loads pandas, 30 MB of it."""
    _, data = array.buffers()
    return np.frombuffer(data, array.type.to_pandas_dtype(), len(array), array.offset * array.type.bit_width // 8)


def _hash_keys(keys: pa.Array) -> np.ndarray:
    """Return xxh3_64 of every key."""
    text, ends = _text(keys)
    return np.fromiter((xxhash.xxh3_64_intdigest(text[a:b]) for a, b in itertools.pairwise(ends)), np.uint64, len(keys))


def _text(keys: pa.Array) -> tuple[memoryview, list[int]]:
    """Return all keys as arrow holds them, one after the other, and where each begins and ends.

    A string object per key would cost 100 bytes.
    """
    if keys.type != pa.string():
        keys = keys.cast(pa.string())
    _, ends, text = keys.buffers()
    return memoryview(text), np.frombuffer(ends, np.int32)[keys.offset : keys.offset + len(keys) + 1].tolist()


def _check_rows(table: SampleTable, parts: list[_Part]) -> None:
    """Raise DataError for the first row whose sizes, offsets, key or statistics cannot be."""
    n, v = table.n_frames.astype(np.int64), table.num_voxels
    shard_bytes = np.array([shard.num_bytes for shard in table.shards], np.int64)[table.shard]

    def column(name: str) -> np.ndarray:
        return np.concatenate([part.numbers(name) for part in parts])

    def refuse(name: str, values: np.ndarray, wrong: np.ndarray) -> None:
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"index.parquet: {table.where(row)}: {name}={values[row]} cannot be in a corpus of {v} voxels; "
                "restore the index or build the corpus again"
            )

    frames = column("n_frames")
    refuse("n_frames", frames, (frames < 1) | (frames > SEGMENT_FRAMES))
    planes = np.full(n.shape, NPY_HEADER_BYTES + 4 * v)
    sizes = {"bold": NPY_HEADER_BYTES + n * v, "frame_xxh3": NPY_HEADER_BYTES + 8 * n, "scale": planes, "stats": planes}
    for stem, expected in sizes.items():
        size, offset = column(f"{stem}_bytes"), table.columns[f"{stem}_offset"]
        refuse(f"{stem}_bytes", size, size != expected)
        refuse(f"{stem}_offset", offset, (offset < 0) | (offset > shard_bytes - expected))
    for name in ("unit", "mean", "sd", "background"):
        values = table.columns[name]
        refuse(name, values, ~np.isfinite(values) | (values <= 0 if name in ("unit", "sd") else False))
    text, ends = _text(table.keys)
    # Python's own pattern: importing pyarrow.compute costs as much as 200,000 of these, and every rank would pay.
    for row, (begin, end) in enumerate(itertools.pairwise(ends)):
        if not KEY_BYTES.fullmatch(text, begin, end):
            raise DataError(f"index.parquet: {table.where(row)}: not a legal key; build the corpus again")
    if np.unique(table.key_hash).size != len(table):
        raise DataError(
            "index.parquet: two samples have the same key; corpora that are mixed need datasets of different names"
        )
