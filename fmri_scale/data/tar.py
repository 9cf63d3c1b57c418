"""Walk through a tar that comes as a stream, believing nothing it says.

A shard is a plain USTAR archive of regular files named KEY.SUFFIX. Anything else - another type of entry, a compressed
or truncated stream, a path, a suffix that no sample has, a size beyond what that suffix can have - ends the walk with
an error before a byte of it is kept. Nothing is ever written to disk, and no more is held than one member.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sharding.format import GRID_SHAPE, JSON_SUFFIX, NPY_HEADER_BYTES, SEGMENT_FRAMES, SUFFIXES, is_key

BLOCK = 512
LAST_RECORD = 1 << 16
"Most bytes of zeros that end an archive (tar fills a record of 10,240)."

VOXELS = GRID_SHAPE[0] * GRID_SHAPE[1] * GRID_SHAPE[2]
LARGEST = {
    ".bold.npy": NPY_HEADER_BYTES + SEGMENT_FRAMES * VOXELS,
    ".frame_xxh3.npy": NPY_HEADER_BYTES + 8 * SEGMENT_FRAMES,
    ".scale.npy": NPY_HEADER_BYTES + 4 * VOXELS,
    ".stats.npy": NPY_HEADER_BYTES + 4 * VOXELS,
    JSON_SUFFIX: 1 << 16,
}
"Most bytes that a member can have."

MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd", b"PK": "zip"}


class TarError(Exception):
    """What came is not a shard."""


class Member(NamedTuple):
    """A member: the sample's key, the suffix with its dot, the offset of its bytes in the tar, and the bytes."""

    key: str
    suffix: str
    offset: int
    data: bytearray


def walk(chunks: Iterable[bytes], keep: bool = True) -> Iterator[Member]:
    """Yield the members of a tar.

    Parameters
    ----------
    chunks
        The tar's bytes, in pieces of any size.
    keep
        Give the members' bytes; else `data` stays empty.

    Raises
    ------
    TarError
        The stream is not a whole, plain shard; the message says what was found where.
    """
    stream = _Stream(chunks)
    while True:
        at = stream.offset
        header = stream.take(BLOCK)
        if header == bytes(BLOCK):
            stream.expect_zeros()
            return
        key, suffix, size = _parse(header, at)
        data = stream.take(size) if keep else bytearray()
        if not keep:
            stream.skip(size)
        if stream.take(-size % BLOCK).strip(b"\0"):
            raise TarError(f"byte {at}: the padding of {key}{suffix} is not empty")
        yield Member(key, suffix, at + BLOCK, data)


def _parse(header: bytearray, at: int) -> tuple[str, str, int]:
    """Return key, suffix and size of an entry."""
    for magic, name in MAGIC.items():
        if header.startswith(magic) and header[257:262] != b"ustar":
            raise TarError(f"byte {at}: compressed with {name}; shards are plain tars")
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if header[257:263] != b"ustar\0" or _octal(header[148:156], at) != total:
        raise TarError(f"byte {at}: not a USTAR header")
    name = bytes(header[:100]).rstrip(b"\0").decode("ascii", "replace")
    if header[156:157] not in (b"0", b"\0"):
        raise TarError(f"byte {at}: {name!r} is not a regular file (type {bytes(header[156:157])!r})")
    key, dot, rest = name.partition(".")
    suffix = dot + rest
    if header[345:500].strip(b"\0") or not is_key(key) or suffix not in SUFFIXES:
        raise TarError(
            f"byte {at}: {name!r} is not the name of a member; expected KEY and one of {', '.join(SUFFIXES)}"
        )
    size = _octal(header[124:136], at)
    if size > LARGEST[suffix]:
        raise TarError(f"byte {at}: {name!r} claims {size} bytes; {suffix} has at most {LARGEST[suffix]}")
    return key, suffix, size


def _octal(field: bytearray, at: int) -> int:
    text = bytes(field).strip(b" \0")
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise TarError(f"byte {at}: {bytes(field)!r} is not an octal number")
    return int(text, 8)


class _Stream:
    """Bytes from chunks, in the amounts that are asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), memoryview(b"")
        self.offset = 0

    def take(self, size: int) -> bytearray:
        """Return the next bytes; the memory grows with what comes, not with what is claimed."""
        taken = bytearray()
        for part in self._parts(size):
            taken += part
        return taken

    def skip(self, size: int) -> None:
        for _ in self._parts(size):
            pass

    def expect_zeros(self) -> None:
        """Go to the end, where only the rest of the last record may stand."""
        end = self.offset
        while part := self._next(LAST_RECORD):
            if bytes(part).strip(b"\0") or self.offset > end + LAST_RECORD:
                raise TarError(f"byte {self.offset}: bytes after the end of the archive")

    def _parts(self, size: int) -> Iterator[memoryview]:
        while size:
            part = self._next(size)
            if not part:
                raise TarError(f"cut at byte {self.offset}, {size} more expected")
            size -= len(part)
            yield part

    def _next(self, most: int) -> memoryview:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return self._rest
            self._rest = memoryview(chunk)
        part, self._rest = self._rest[:most], self._rest[most:]
        self.offset += len(part)
        return part
