"""Shards at a URL: by byte range, from pieces in the local cache, or as whole shards where a store has no ranges.

http and https go through web.py, all other schemes through fsspec (s3 needs s3fs, gs needs gcsfs, ...). What is read
is the same in every mode, since the order of clips never depends on how they come. Whole shards are checked member by
member while they pass (tar.py) and by their sha256 before they are used.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from fmri_scale.data.cache import Cache, piece_name
from fmri_scale.data.local import LocalSource, read_exactly
from fmri_scale.data.reading import ReadFault, Span
from fmri_scale.data.tar import TarError, walk
from fmri_scale.data.web import HttpStore, NoRangesError
from fmri_scale.log import get_logger

GAP = 1 << 16
"Bytes between two spans that are read and thrown away rather than asked for in a request of their own."

BLOCK = 8 << 20
"Bytes of a piece of the cache in range mode: a clip of 20 frames touches one or two."

STREAMS = 4
"Requests of one clip at a time."


class Store(Protocol):
    """Objects at URLs."""

    def read(self, url: str, offset: int, buffers: Sequence[memoryview], size: int) -> None:
        """Fill the buffers from byte `offset` of an object of `size` bytes; ReadFault where that fails."""

    def chunks(self, url: str, size: int) -> Iterator[bytes]:
        """Yield a whole object of `size` bytes."""

    def whole(self, url: str, most: int) -> bytes:
        """Return an object of at most `most` bytes."""

    def size(self, url: str) -> int | None:
        """Return the bytes of an object, None where that cannot be known; ReadFault where it is absent."""

    def close(self) -> None:
        """Let go of connections."""


class Location(NamedTuple):
    """Where a shard is, its bytes and its sha256 as the corpus says."""

    url: str
    size: int
    sha256: str


class RemoteSource:
    """See reading.Source.

    Parameters
    ----------
    shards
        Path or URL, bytes and sha256 of each shard, by its number.
    access
        range, stream, or auto: ranges, and whole shards from a store that turns out to have none.
    cache_dir, cache_bytes
        Folder and size of the local cache; 0 bytes keeps no ranges, and only the shard in use when streaming.
    timeout_s
        Longest silence of a store.
    """

    def __init__(
        self, shards: Sequence[Sequence[Any]], access: str, cache_dir: str, cache_bytes: int, timeout_s: float
    ) -> None:
        self._shards = [Location(*shard) for shard in shards]
        self._access, self._cache_bytes, self._timeout_s = access, cache_bytes, timeout_s
        self._cache = Cache(cache_dir, cache_bytes)
        self._local = LocalSource([shard.url for shard in self._shards])
        self._stores: dict[str, Store] = {}
        self._without_ranges: set[str] = set()
        self._threads = ThreadPoolExecutor(STREAMS)

    def expect(self, shard: int, spans: Sequence[Span]) -> bool:
        """Only files are read piece by piece: a store is asked for all at once."""
        return "://" not in self._shards[shard].url and self._local.expect(shard, spans)

    def read(self, shard: int, spans: Sequence[Span]) -> None:
        """Fill the buffers of all spans."""
        location = self._shards[shard]
        if "://" not in location.url:
            return self._local.read(shard, spans)
        try:
            if self._access != "stream" and _host(location.url) not in self._without_ranges:
                try:
                    return self._read_ranges(location, spans)
                except NoRangesError:
                    if self._access == "range":
                        raise
                    self._without_ranges.add(_host(location.url))
            self._from_piece(self._shard_name(location), spans, 0, lambda file: self._fetch_shard(location, file))
        except OSError as error:
            raise ReadFault(f"{location.url}: {error.strerror or error}") from error

    def distrust(self, shard: int, spans: Sequence[Span]) -> None:
        """Remove the pieces of the cache that these bytes came from."""
        location = self._shards[shard]
        if "://" not in location.url:
            return self._local.distrust(shard, spans)
        self._cache.drop(self._shard_name(location))
        for number in {n for span in spans for n in _blocks(span.offset, span.size)}:
            self._cache.drop(self._block_name(location, number))

    def close(self) -> None:
        """Let go of files, threads and connections."""
        self._local.close()
        self._threads.shutdown()
        for store in self._stores.values():
            store.close()

    def store(self, url: str) -> Store:
        """Return the store of a URL's scheme."""
        scheme = url.partition("://")[0]
        if scheme not in self._stores:
            self._stores[scheme] = make_store(scheme, self._timeout_s)
        return self._stores[scheme]

    def _read_ranges(self, location: Location, spans: Sequence[Span]) -> None:
        merged = merge(spans)
        if self._cache_bytes:
            try:
                list(self._threads.map(lambda span: self._read_blocks(location, span), merged))
                return
            except OSError as error:
                get_logger(__name__).warning("cache %s: %s; reading without it", self._cache.folder, error)
                self._cache_bytes = 0
        store = self.store(location.url)
        list(self._threads.map(lambda s: store.read(location.url, s.offset, s.buffers, location.size), merged))

    def _read_blocks(self, location: Location, span: Span) -> None:
        """Fill a span from pieces of BLOCK bytes, fetching those that are absent."""
        for number in _blocks(span.offset, span.size):
            begin = number * BLOCK
            end = min(begin + BLOCK, location.size)
            part = _part(span, begin, end)
            self._from_piece(
                self._block_name(location, number),
                [part],
                begin,
                lambda file, begin=begin, end=end: self._fetch_block(location, begin, end, file),
            )

    def _from_piece(self, name: str, spans: Sequence[Span], begin: int, fetch: Any) -> None:
        """Fill spans from a piece of the cache that holds the shard's bytes from `begin` on."""
        file = self._cache.open(name, fetch)
        try:
            for span in spans:
                if read_exactly(file, Span(span.offset - begin, span.buffers)) != span.size:
                    raise ReadFault(f"{self._cache.folder}: a cached piece is shorter than it should be")
        finally:
            os.close(file)

    def _fetch_block(self, location: Location, begin: int, end: int, file: int) -> None:
        data = bytearray(end - begin)
        self.store(location.url).read(location.url, begin, [memoryview(data)], location.size)
        _write(file, data)

    def _fetch_shard(self, location: Location, file: int) -> None:
        """Write a whole shard, checked while it passes."""
        digest = hashlib.sha256()

        def passing() -> Iterator[bytes]:
            for chunk in self.store(location.url).chunks(location.url, location.size):
                digest.update(chunk)
                _write(file, chunk)
                yield chunk

        try:
            for _ in walk(passing(), keep=False):
                pass
        except TarError as error:
            raise ReadFault(f"{location.url}: {error}") from error
        if digest.hexdigest() != location.sha256:
            raise ReadFault(f"{location.url}: its sha256 is not the one in corpus.json")

    def _shard_name(self, location: Location) -> str:
        return piece_name("shard", *location)

    def _block_name(self, location: Location, number: int) -> str:
        return piece_name("block", *location, BLOCK, number)


class FsspecStore:
    """Objects of a file system that fsspec knows.

    Raises
    ------
    ReadFault
        The package that the scheme needs is not installed.
    """

    def __init__(self, scheme: str) -> None:
        import fsspec

        try:
            self._files = fsspec.filesystem(scheme)
        except (ImportError, ValueError) as error:
            raise ReadFault(f"{scheme}://: {error}", final=True) from error

    def read(self, url: str, offset: int, buffers: Sequence[memoryview], size: int) -> None:
        """Fill the buffers from byte `offset`."""
        wanted = sum(buffer.nbytes for buffer in buffers)
        data = self._ask(url, lambda: self._files.cat_file(url, start=offset, end=offset + wanted))
        if len(data) != wanted:
            raise ReadFault(f"{url}: asked for {wanted} bytes from {offset}, got {len(data)}")
        view = memoryview(data)
        for buffer in buffers:
            buffer[:], view = view[: buffer.nbytes], view[buffer.nbytes :]

    def chunks(self, url: str, size: int) -> Iterator[bytes]:
        """Yield the whole object."""
        file = self._ask(url, lambda: self._files.open(url, "rb", cache_type="readahead", block_size=BLOCK))
        with file:
            left = size
            while left:
                data = self._ask(url, lambda left=left: file.read(min(1 << 20, left)))
                if not data:
                    raise ReadFault(f"{url}: ends {left} bytes before the size in the corpus")
                left -= len(data)
                yield data

    def whole(self, url: str, most: int) -> bytes:
        """Return the object."""
        size = self.size(url)
        if size is not None and size > most:
            raise ReadFault(f"{url}: {size} bytes, at most {most} expected", final=True)
        return self._ask(url, lambda: self._files.cat_file(url))

    def size(self, url: str) -> int | None:
        """Return the bytes of the object."""
        return self._ask(url, lambda: self._files.size(url))

    def close(self) -> None:
        """Nothing to let go of: fsspec keeps its own connections."""

    def _ask(self, url: str, question: Any) -> Any:
        try:
            return question()
        except FileNotFoundError as error:
            raise ReadFault(f"{url}: no such object", final=True) from error
        except Exception as error:  # every backend has errors of its own
            raise ReadFault(f"{url}: {type(error).__name__}: {str(error)[:200]}") from error


def make_store(scheme: str, timeout_s: float) -> Store:
    """Return what reads URLs of a scheme."""
    return HttpStore(timeout_s) if scheme in ("http", "https") else FsspecStore(scheme)


def merge(spans: Sequence[Span]) -> list[Span]:
    """Join spans that lie close together, with buffers for the gaps, so that each costs one request."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: s.offset):
        gap = span.offset - merged[-1].offset - merged[-1].size if merged else -1
        if 0 <= gap <= GAP:
            filler = [memoryview(bytearray(gap))] if gap else []
            merged[-1] = Span(merged[-1].offset, [*merged[-1].buffers, *filler, *span.buffers])
        else:
            merged.append(span)
    return merged


def _blocks(offset: int, size: int) -> range:
    return range(offset // BLOCK, (offset + size - 1) // BLOCK + 1)


def _part(span: Span, begin: int, end: int) -> Span:
    """Return the part of a span that lies in [begin, end)."""
    buffers, at = [], span.offset
    for buffer in span.buffers:
        first, last = max(begin - at, 0), min(end - at, buffer.nbytes)
        if first < last:
            buffers.append(buffer[first:last])
        at += buffer.nbytes
    return Span(max(span.offset, begin), buffers)


def _host(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


def _write(file: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
