"""Reads a file of torch.save (a zip with one pickle and numbered storages) without torch.load.

The directory of the zip is checked before anything is trusted: members stored plainly, inside the file, apart from
one another, under the names the local headers also give. The pickle goes through `pickle_reader`, which runs
nothing; a tensor's values are read as raw bytes from its member. In: a path. Out: a `TorchFile` whose `content`
is plain data with `TensorRef`s, and `tensor(ref)`, which gives the values (CPU, contiguous).
"""

import contextlib
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from fmri_scale.errors import CheckpointError
from fmri_scale.release.pickle_reader import MAX_PICKLE_BYTES, read_pickle
from fmri_scale.release.pickle_values import StorageRef, TensorRef, UnsafePickleError

MAX_MEMBERS = 100_000
MAX_DIRECTORY_BYTES = 32 * 2**20
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
END_RECORD = struct.Struct("<4s4H2IH")
ZIP64_LOCATOR = struct.Struct("<4sIQI")
ZIP64_RECORD = struct.Struct("<4sQ2H2I4Q")
REMEDY = "re-save it with a current PyTorch: torch.save(torch.load(FILE, weights_only=True), NEW)"


class TorchFile:
    """A checkpoint file that was found to be sound, open for reading.

    Attributes
    ----------
    path : the file.
    content : what its pickle holds, as plain data (see `pickle_reader`).
    """

    def __init__(self, path: str | Path, allow: Collection[str] = ()) -> None:
        self.path = Path(path)
        with self._named_errors():
            with self.path.open("rb") as file:
                self._members = _directory(file)
            self._folder = _folder(self._members)
            self._allocated = 0
            self._limit = 2 * self.path.stat().st_size
            self._check_byte_order()
            self.content = read_pickle(self._read(f"{self._folder}data.pkl", MAX_PICKLE_BYTES), allow)

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """Return the values of a tensor: CPU, contiguous, own memory."""
        dtype: torch.dtype = getattr(torch, ref.storage.dtype)
        with self._named_errors():
            self._allocated += math.prod(ref.shape) * dtype.itemsize
            if self._allocated > self._limit:
                raise UnsafePickleError("tensors of more bytes than the file holds")
            raw = bytearray(self._read_storage(ref.storage, dtype.itemsize))
        if not raw:
            return torch.empty(ref.shape, dtype=dtype)
        flat = torch.frombuffer(raw, dtype=dtype)
        return flat.as_strided(ref.shape, ref.stride, ref.offset).clone(memory_format=torch.contiguous_format)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{self.path}: refused: {error} (nothing in the file was run)") from error
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def _check_byte_order(self) -> None:
        name = f"{self._folder}byteorder"
        if name in self._members and self._read(name, 16) != b"little":
            raise UnsafePickleError("values in big-endian order, which this reader does not turn round")

    def _read_storage(self, storage: StorageRef, item: int) -> bytes:
        name = f"{self._folder}data/{storage.key}"
        if name not in self._members:
            raise UnsafePickleError(f"member {name!r} is missing")
        if self._members[name].size != storage.count * item:
            found, claimed = self._members[name].size, storage.count * item
            raise UnsafePickleError(f"member {name!r} has {found} bytes, {claimed} are claimed")
        return self._read(name, self._members[name].size)

    def _read(self, name: str, limit: int) -> bytes:
        member = self._members[name]
        if member.size > limit:
            raise UnsafePickleError(f"member {name!r} of {member.size} bytes, more than the {limit} allowed")
        with self.path.open("rb") as file:
            file.seek(member.start)
            data = file.read(member.size)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise UnsafePickleError(f"member {name!r} does not match its checksum")
        return data


class _Member:
    def __init__(self, start: int, size: int, crc: int) -> None:
        self.start, self.size, self.crc = start, size, crc


def _directory(file: Any) -> dict[str, _Member]:
    """Return the members of an open zip file by name, or refuse it."""
    size = file.seek(0, 2)
    file.seek(0)
    magic = file.read(4)
    if magic != b"PK\x03\x04":
        kind = "a bare pickle or a legacy checkpoint" if magic[:1] == b"\x80" else "no PyTorch checkpoint"
        raise UnsafePickleError(f"{kind}: expected the zip archive that torch.save writes since 1.6; {REMEDY}")
    count = _check_end(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            infos, start = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise UnsafePickleError(f"a damaged zip archive ({str(error)[:100]})") from error
    if len({info.filename for info in infos}) != count:
        raise UnsafePickleError("a zip archive that lists a name twice, or not what it claims to list")
    members = {info.filename: _member(file, info, start) for info in infos}
    _check_apart(members)
    return members


def _check_end(file: Any, size: int) -> int:
    """Return how many members the end record claims, if it ends the file and its directory is of a sane size."""
    file.seek(max(0, size - ZIP64_LOCATOR.size - END_RECORD.size))
    tail = file.read()
    if len(tail) < END_RECORD.size or tail[-END_RECORD.size :][:4] != b"PK\x05\x06":
        raise UnsafePickleError("a zip archive that is cut short or has something after its end")
    count, directory = END_RECORD.unpack(tail[-END_RECORD.size :])[4:6]
    if tail[:4] == b"PK\x06\x07":
        file.seek(min(size, ZIP64_LOCATOR.unpack(tail[: ZIP64_LOCATOR.size])[2]))
        record = file.read(ZIP64_RECORD.size)
        if len(record) < ZIP64_RECORD.size or record[:4] != b"PK\x06\x06":
            raise UnsafePickleError("a zip archive whose 64-bit end record is not where it says")
        count, directory = ZIP64_RECORD.unpack(record)[7:9]
    if count > MAX_MEMBERS or directory > min(size, MAX_DIRECTORY_BYTES):
        raise UnsafePickleError(f"a zip directory of {count} members and {directory} bytes")
    return count


def _member(file: Any, info: zipfile.ZipInfo, directory: int) -> _Member:
    name = info.filename
    if info.flag_bits & 0x1 or info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise UnsafePickleError(f"member {name[:100]!r} is compressed or encrypted; PyTorch stores members plainly")
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or info.orig_filename != name:
        raise UnsafePickleError(f"member {name[:100]!r} has a path for a name")
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) != LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise UnsafePickleError(f"member {name[:100]!r} is not where the directory says")
    fields = LOCAL_HEADER.unpack(header)
    name_bytes, extra_bytes = fields[9], fields[10]
    if file.read(name_bytes) != name.encode() or fields[3] != info.compress_type:
        raise UnsafePickleError(f"member {name[:100]!r} is called or packed otherwise in its own header")
    start = info.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + info.file_size > directory:
        raise UnsafePickleError(f"member {name[:100]!r} claims {info.file_size} bytes, more than the file holds")
    return _Member(start, info.file_size, info.CRC)


def _check_apart(members: dict[str, _Member]) -> None:
    end = 0
    for name, member in sorted(members.items(), key=lambda item: item[1].start):
        if member.start < end:
            raise UnsafePickleError(f"member {name[:100]!r} overlaps another")
        end = member.start + member.size


def _folder(members: dict[str, _Member]) -> str:
    """Return the archive's one folder, with its slash."""
    pickles = [name for name in members if name.endswith(".pkl")]
    if any(re.match(r"[^/]*/code/|[^/]*/constants\.pkl", name) for name in members):
        raise UnsafePickleError("a TorchScript archive, which holds code; export a state dict instead")
    if len(pickles) != 1 or not re.fullmatch(r"[^/]+/data\.pkl", pickles[0]):
        raise UnsafePickleError(f"{len(pickles)} pickles ({', '.join(pickles)[:100]}); a checkpoint has one, data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if any(not name.startswith(folder) for name in members):
        raise UnsafePickleError(f"members outside the folder {folder!r}")
    return folder
