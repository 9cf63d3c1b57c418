"""The two tables of a corpus and its identity.

In: rows. Out: index.parquet and runs.parquet as bytes, with rows in a fixed order so that the same samples give the
same bytes; and the corpus id.
"""

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding.format import INDEX_SCHEMA, MEMBER_COLUMNS, SCHEMA_VERSION

Row = dict[str, Any]


def place_columns(key: str, places: dict[str, tuple[int, int]]) -> Row:
    """Offset and size columns of a sample, from the places of the members of its shard."""
    row: Row = {}
    for suffix, stem in MEMBER_COLUMNS.items():
        row[f"{stem}_offset"], row[f"{stem}_bytes"] = places[key + suffix]
    return row


def index_table(table: pa.Table) -> pa.Table:
    """Rows sorted by shard and key, in one piece."""
    return table.sort_by([("shard", "ascending"), ("key", "ascending")]).combine_chunks()


def runs_table(table: pa.Table) -> pa.Table:
    """Rows sorted by source and by who they are of, in one piece."""
    names = ("source", "dataset", "subject", "session", "task", "run", "variant")
    return table.sort_by([(name, "ascending") for name in names]).combine_chunks()


def table_bytes(table: pa.Table) -> bytes:
    """A table as a parquet file; the same rows give the same bytes with one version of pyarrow."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


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
