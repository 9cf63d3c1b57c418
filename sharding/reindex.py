"""The index of a corpus from its tars alone, for when index.parquet is lost or doubted.

In: the shards of a corpus. Out: the same rows, and with the same pyarrow the same bytes, as the build wrote. A sample's
JSON member holds its facts; places and checksums are those of the tar.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import xxhash

from sharding.errors import CorpusError
from sharding.format import INDEX_SCHEMA, JSON_SUFFIX, MEMBER_COLUMNS, SUFFIXES
from sharding.index import Row, index_table, place_columns
from sharding.tar import total_bytes
from sharding.write import member_places


def rebuild_index(path: Path) -> pa.Table:
    """Read every shard of a corpus; return its index.

    Raises
    ------
    CorpusError
        There are no shards, or one is not a whole tar of whole samples.
    """
    shards = sorted((path / "shards").glob("*.tar"))
    if not shards:
        raise CorpusError(f"{path}: no shards (shards/*.tar); is it the right folder?")
    tables = [pa.Table.from_pylist(list(shard_rows(shard)), schema=INDEX_SCHEMA) for shard in shards]
    return index_table(pa.concat_tables(tables))


def shard_rows(shard: Path) -> Iterator[Row]:
    """Index rows of a shard, in the order of its samples."""
    try:
        places = member_places(shard)
        keys = [name.removesuffix(SUFFIXES[0]) for name in places if name.endswith(SUFFIXES[0])]
        if list(places) != [key + suffix for key in keys for suffix in SUFFIXES]:
            raise CorpusError(f"{shard}: not a row of whole samples; restore it, see: fmri-shards verify --deep")
        size, wanted = shard.stat().st_size, total_bytes(size for _, size in places.values())
        if size != wanted:
            raise CorpusError(f"{shard}: {size:,} bytes, its members make {wanted:,}; restore it")
        with shard.open("rb") as file:
            for key in keys:
                yield _row(shard, file, key, places)
    except (tarfile.TarError, ValueError, KeyError, OSError) as error:
        raise CorpusError(f"{shard}: cannot be read ({error}); restore it") from error


def _row(shard: Path, file: IO[bytes], key: str, places: dict[str, tuple[int, int]]) -> Row:
    row: Row = {"shard": shard.name, **place_columns(key, places)}
    for suffix, stem in MEMBER_COLUMNS.items():
        file.seek(row[f"{stem}_offset"])
        data = file.read(row[f"{stem}_bytes"])
        row[f"{stem}_xxh3"] = xxhash.xxh3_64_intdigest(data)
        if suffix == JSON_SUFFIX:
            facts = json.loads(data)
            row |= {name: facts[name] for name in INDEX_SCHEMA.names if name in facts}
    if missing := [name for name in INDEX_SCHEMA.names if name not in row]:
        raise CorpusError(f"{shard}: {key}{JSON_SUFFIX} lacks {', '.join(missing)}; restore it")
    return row
