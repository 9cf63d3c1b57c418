"""Open the corpora that a configuration names, on disk or at a URL, and say how their shards are to be read.

Of a remote corpus the small files (corpus.json, mask, index) are copied into the cache, in a folder named by the URL
and the corpus id; its shards stay where they are.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmri_scale.config import DataConfig
from fmri_scale.data.reading import ReadFault
from fmri_scale.data.table import SampleTable
from fmri_scale.errors import DataError
from sharding.corpus import Corpus, open_corpus

if TYPE_CHECKING:
    from fmri_scale.data.remote import Store

MOST_BYTES = {"corpus.json": 1 << 28, "mask.nii.gz": 1 << 24, "index.parquet": 1 << 32}
"Files that are copied of a remote corpus, and the bytes beyond which they cannot be what they should be."

CORPUS_ID = re.compile(r"[0-9a-f]{16,128}")
CHECKS = 32
"Shards looked at at a time by `preflight`."

NAMED = 4
"Missing shards named in an error."


@dataclass(frozen=True)
class RemoteCorpus(Corpus):
    """A corpus whose shards are at a URL; `path` holds copies of the small files."""

    url: str = ""


def open_corpora(config: DataConfig, check_shards: bool = True) -> list[Corpus]:
    """Open data.corpus and data.more_corpora.

    Parameters
    ----------
    config
        Section `data` of the configuration.
    check_shards
        Look that every shard is there with its recorded size: worth it on one rank, a burden on a thousand.

    Raises
    ------
    DataError
        A remote corpus cannot be reached, or shards are missing; the message lists them.
    CorpusError
        A folder is not a whole corpus.
    """
    corpora = [_open(place, config) for place in (config.corpus, *config.more_corpora)]
    if check_shards:
        preflight(corpora, config)
    return corpora


def preflight(corpora: Sequence[Corpus], config: DataConfig) -> None:
    """Look at all shards, many at a time; DataError with the list of those that are missing or of another size."""
    shards = [(corpus, shard) for corpus in corpora for shard in corpus.meta["shards"]]

    def look(first: int) -> list[tuple[int, str]]:
        """Return what is wrong with every CHECKS-th shard, by its number: a task each would cost more than a stat."""
        numbers = range(first, len(shards), CHECKS)
        return [(number, text) for number in numbers if (text := _look_at(*shards[number], config))]

    with ThreadPoolExecutor(CHECKS) as threads:
        wrong = [text for _, text in sorted(itertools.chain.from_iterable(threads.map(look, range(CHECKS))))]
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        names = "; ".join(wrong[:NAMED])
        raise DataError(f"{len(wrong)} of {len(shards)} shards cannot be used; restore them: {names}{more}")


def location(corpus: Corpus, name: str) -> str:
    """Return the path or URL of a shard."""
    if isinstance(corpus, RemoteCorpus):
        return f"{corpus.url}/shards/{name}"
    return str(corpus.shard_path(name))


def source_spec(corpora: Sequence[Corpus], table: SampleTable, config: DataConfig) -> dict[str, Any]:
    """Return what sources.make_source makes a source of; plain values, that travel as JSON."""
    places = [location(corpora[shard.corpus], shard.name) for shard in table.shards]
    if not any(isinstance(corpus, RemoteCorpus) for corpus in corpora):
        return {"kind": "local", "paths": places}
    return {
        "kind": "remote",
        "shards": [(place, s.num_bytes, s.sha256) for place, s in zip(places, table.shards, strict=True)],
        "access": config.access,
        "cache_dir": str(cache_folder(config) / "pieces"),
        "cache_bytes": int(config.cache_gb * 1e9),
        "timeout_s": timeout_s(config),
    }


def cache_folder(config: DataConfig) -> Path:
    """Return the folder of the local cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(config.cache_dir or f"{base}/fmri_scale").expanduser()


def timeout_s(config: DataConfig) -> float:
    """Return the longest silence of a store, so that all repeated reads fit into data.stall_timeout_s."""
    return config.stall_timeout_s / (2 * (config.retries + 1))


def _open(place: str, config: DataConfig) -> Corpus:
    if not place:
        raise DataError("data.corpus is not set; give the folder made by fmri-shards build, or its URL")
    if "://" not in place:
        return open_corpus(place, check_shards=False)
    url = place.rstrip("/")
    try:
        store = _store(url, config)
        with contextlib.closing(store):
            folder = _copy_small_files(url, store, cache_folder(config) / "corpora")
    except ReadFault as fault:
        raise DataError(f"{url}: not a corpus that can be read: {fault}") from fault
    corpus = open_corpus(folder, check_shards=False)
    return RemoteCorpus(corpus.path, corpus.meta, corpus.mask, corpus.index, url)


def _store(url: str, config: DataConfig) -> "Store":
    """Return what reads a URL."""
    from fmri_scale.data.remote import make_store  # brings HTTP, which a corpus on disk does not need

    return make_store(url.partition("://")[0], timeout_s(config))


def _copy_small_files(url: str, store: "Store", cache: Path) -> Path:
    """Return the folder with copies of the corpus' small files, made now or before."""
    description = store.whole(f"{url}/corpus.json", MOST_BYTES["corpus.json"])
    try:
        corpus_id = str(json.loads(description)["corpus_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{url}/corpus.json: cannot be read ({error}); is it the right URL?") from error
    if not CORPUS_ID.fullmatch(corpus_id):
        raise DataError(f"{url}/corpus.json: corpus_id {corpus_id[:40]!r} is not a hash")
    folder = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{corpus_id[:32]}"
    if (folder / "corpus.json").is_file() and (folder / "corpus.json").read_bytes() == description:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("mask.nii.gz", "index.parquet"):
        _write(folder / name, store.whole(f"{url}/{name}", MOST_BYTES[name]))
    _write(folder / "corpus.json", description)  # last, since it says that the others are there
    return folder


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _look_at(corpus: Corpus, shard: dict[str, Any], config: DataConfig) -> str:
    """Return what is wrong with a shard, nothing where it is there with its size."""
    place, expected = location(corpus, shard["name"]), int(shard["bytes"])
    try:
        if isinstance(corpus, RemoteCorpus):
            with contextlib.closing(_store(place, config)) as store:
                size = store.size(place)
        else:
            size = os.stat(place).st_size
    except OSError as error:
        return f"{place}: {error.strerror}"
    except ReadFault as fault:
        return str(fault)
    return "" if size is None or size == expected else f"{place}: {size} bytes, corpus.json says {expected}"
