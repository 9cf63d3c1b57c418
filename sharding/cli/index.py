"""Rebuild index.parquet from the tars of a corpus alone: the same rows and bytes as the build wrote.

Where corpus.json is there, the rebuilt index must be the one it names, else nothing is written (exit code 1): then a
shard is not what it was; fmri-shards verify --deep says which.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from sharding.build import writing
from sharding.corpus import seal
from sharding.errors import CorpusError
from sharding.index import corpus_id, table_bytes
from sharding.reindex import rebuild_index
from sharding.write import write_whole

EXAMPLES = "example:\n  fmri-shards index corpus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder with shards/*.tar")


def run(args: argparse.Namespace) -> int:
    """Rebuild the index."""
    meta = _meta(args.corpus)
    table = rebuild_index(args.corpus)
    said = f"{table.num_rows:,} samples in {len(set(table['shard'].to_pylist())):,} shards"
    if meta and corpus_id(table, meta["mask"]["sha256"]) != meta["corpus_id"]:
        print(
            f"{args.corpus}: the shards ({said}) are not those of corpus.json; nothing written, see: "
            f"fmri-shards verify {args.corpus} --deep",
            file=sys.stderr,
        )
        return 1
    data = table_bytes(table)
    with writing(args.corpus):
        write_whole(args.corpus / "index.parquet", data)
        if meta:
            _record(args.corpus, meta, data)
    print(f"{args.corpus}: index.parquet of {said}" + ("" if meta else "; corpus.json is missing: restore it"))
    return 0


def _meta(corpus: Path) -> dict | None:
    file = corpus / "corpus.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CorpusError(f"{file}: cannot be read ({error}); restore it, or remove it to index without it") from error


def _record(corpus: Path, meta: dict, data: bytes) -> None:
    """Have corpus.json name these bytes: another pyarrow writes the same rows otherwise."""
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if meta.get("files", {}).get("index.parquet") != facts:
        files = {**meta.get("files", {}), "index.parquet": facts}
        kept = {name: value for name, value in meta.items() if name != "sealed"}
        write_whole(corpus / "corpus.json", seal(json.dumps({**kept, "files": files}, indent=1)))
