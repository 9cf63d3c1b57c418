"""The bytes of a shard beside its payloads: a plain USTAR tar, a function of names and sizes alone.

Members follow each other as header, payload, zeros up to a block. No times, owners or links: the headers are those that
`webdataset.TarWriter` writes with mtime=0 (a test compares them), so what lies between payloads can be checked to the
byte. Here is no file; `write` and `verify` use this.
"""

import tarfile
from collections.abc import Iterable

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE

READ_ONLY = 0o444


def member_header(name: str, size: int) -> bytes:
    """Header of a member: 512 bytes for the ASCII names of up to 100 characters that the format allows."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, READ_ONLY
    return member.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> int:
    """Bytes of zeros after a payload."""
    return -size % BLOCK


def end_bytes(size: int) -> int:
    """Bytes of zeros that end a tar whose members take `size` bytes: two blocks, filled up to a record."""
    return 2 * BLOCK + -(size + 2 * BLOCK) % RECORD


def total_bytes(sizes: Iterable[int]) -> int:
    """Size of a tar with members of these sizes."""
    members = sum(BLOCK + size + padding(size) for size in sizes)
    return members + end_bytes(members)
