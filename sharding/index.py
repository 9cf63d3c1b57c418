"""The two tables of a corpus and its identity.

In: rows as plain dictionaries. Out: index.parquet and runs.parquet, written whole, with rows in a fixed order so that
the same samples give the same bytes; and the corpus id.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding.format import INDEX_SCHEMA, MEMBER_COLUMNS, RUNS_SCHEMA, SCHEMA_VERSION
from sharding.write import write_whole

Row = dict[str, Any]


def place_columns(key: str, places: dict[str, tuple[int, int]]) -> Row:
    """Offset and size columns of a sample, from the places of the members of its shard."""
    row: Row = {}
    for suffix, stem in MEMBER_COLUMNS.items():
        row[f"{stem}_offset"], row[f"{stem}_bytes"] = places[key + suffix]
    return row


def index_table(rows: list[Row]) -> pa.Table:
    """Rows as a table, sorted by shard and key."""
    return pa.Table.from_pylist(sorted(rows, key=lambda row: (row["shard"], row["key"])), schema=INDEX_SCHEMA)


def runs_table(rows: list[Row]) -> pa.Table:
    """Rows as a table, sorted by source; facts a failed run lacks are null."""
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["source"]), schema=RUNS_SCHEMA)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file that appears only when whole."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_whole(path, buffer.getvalue())


def corpus_id(index: pa.Table, mask_sha256: str) -> str:
    """Identity of what a reader of the corpus gets: schema, mask, and every index column."""
    digest = hashlib.sha256(f"fmri_scale corpus {SCHEMA_VERSION} {mask_sha256} {index.num_rows}".encode())
    for name in INDEX_SCHEMA.names:
        digest.update(f"\0{name}\0".encode())
        values = index.column(name).to_numpy()
        if values.dtype == object:
            digest.update("\0".join(values).encode())
        else:
            digest.update(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
