"""Is every byte of a corpus what it was when it was made? If not: which shard, key and member.

In: a corpus folder. Out: a `Report` of findings. Without `deep`, the small files are read whole and shards are looked
at by size; deep, every byte of every shard is read. corpus.json carries a checksum of itself, of the tables and the
mask, and of every shard, so no byte of those is unwatched; where one is found wrong, the index' checksums of members
and the known bytes between them say which.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from sharding.corpus import CHECKED_FILES, is_sealed
from sharding.errors import CorpusError
from sharding.format import BOLD_SUFFIX, MEMBER_COLUMNS, NPY_HEADER_BYTES, SUFFIXES
from sharding.tar import BLOCK, end_bytes, member_header, padding

READ_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Finding:
    """Something wrong with a file."""

    file: str
    "Within the corpus."
    kind: str
    "missing, short, long, altered, or unknown (a shard that corpus.json does not name)."
    said: str
    key: str = ""
    "Sample, where one is hit."
    member: str = ""
    "Member of the sample (suffix)."

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: {self.said}"


@dataclass
class Report:
    """What was looked at, and what was found."""

    corpus: str
    deep: bool
    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    bytes_read: int = 0

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(asdict(self), indent=1)


def verify(
    path: Path, deep: bool = False, workers: int = 1, start: Callable[[int], Callable[[int], object]] | None = None
) -> Report:
    """Check a corpus.

    Parameters
    ----------
    path
        Folder made by `fmri-shards build`.
    deep
        Read every shard whole.
    workers
        Shards read at a time.
    start
        Called with the bytes to be read; returns what is told of bytes read.

    Raises
    ------
    CorpusError
        There is no such folder.
    """
    if not path.is_dir():
        raise CorpusError(f"{path}: no such corpus")
    report = Report(str(path), deep)
    meta = _check_meta(path, report)
    try:
        _check_files(path, meta, report)
        shards = _check_sizes(path, meta, report)
        if deep:
            progress = start(sum(shard["bytes"] for shard in shards)) if start else lambda done: None
            _check_shards(path, shards, report, max(1, workers), progress)
    except (KeyError, TypeError, AttributeError, ValueError):
        if not report.findings:  # only a corpus.json that is found altered may be of another shape
            raise
        report.findings.append(Finding("corpus.json", "altered", "not of the expected form; not all could be checked"))
    report.findings.sort(key=lambda finding: finding.file)
    return report


def _check_shards(
    path: Path, shards: list[dict[str, Any]], report: Report, workers: int, progress: Callable[[int], object]
) -> None:
    index = _readable_index(path)
    with ThreadPoolExecutor(workers) as pool:
        for findings, num_bytes in pool.map(lambda shard: _check_bytes(path, shard, index, progress), shards):
            report.findings += findings
            report.bytes_read += num_bytes


def _check_meta(path: Path, report: Report) -> dict[str, Any]:
    report.files += 1
    try:
        data = (path / "corpus.json").read_bytes()
    except OSError as error:
        kind = "missing" if isinstance(error, FileNotFoundError) else "altered"
        report.findings.append(Finding("corpus.json", kind, str(error.strerror)))
        return {}
    report.bytes_read += len(data)
    if is_sealed(data) is not True:
        said = "it carries no checksum of itself" if is_sealed(data) is None else "not what its own checksum says"
        report.findings.append(Finding("corpus.json", "altered", said))
    try:
        return json.loads(data)
    except ValueError:
        return {}


def _check_files(path: Path, meta: dict[str, Any], report: Report) -> None:
    for name in CHECKED_FILES:
        wanted = meta.get("files", {}).get(name, {})
        report.files += 1
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            report.findings.append(Finding(name, "missing", str(error.strerror)))
            continue
        report.bytes_read += len(data)
        if len(data) != wanted.get("bytes"):
            kind = "short" if len(data) < wanted.get("bytes", 0) else "long"
            report.findings.append(Finding(name, kind, f"{len(data):,} bytes, not {wanted.get('bytes')}"))
        elif hashlib.sha256(data).hexdigest() != wanted.get("sha256"):
            report.findings.append(Finding(name, "altered", "not what its checksum in corpus.json says"))


def _check_sizes(path: Path, meta: dict[str, Any], report: Report) -> list[dict[str, Any]]:
    """Look for every shard; return those that can be read."""
    there = []
    for shard in meta["shards"]:
        file = path / "shards" / shard["name"]
        report.files += 1
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            said = f"with {shard['samples']} samples"
            report.findings.append(Finding(f"shards/{shard['name']}", "missing", said))
            continue
        if size != shard["bytes"]:
            kind = "short" if size < shard["bytes"] else "long"
            said = f"{size:,} bytes, not {shard['bytes']:,}"
            report.findings.append(Finding(f"shards/{shard['name']}", kind, said))
        there.append(shard)
    named = {shard["name"] for shard in meta["shards"]}
    for file in sorted((path / "shards").glob("*")) if (path / "shards").is_dir() else []:
        if file.name not in named:
            report.findings.append(Finding(f"shards/{file.name}", "unknown", "corpus.json names no such shard"))
    return there


def _readable_index(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path / "index.parquet")
    except (OSError, ValueError, pa.ArrowException):
        return None  # found already; shards are then named without keys


def _check_bytes(
    path: Path, shard: dict[str, Any], index: pa.Table | None, progress: Callable[[int], object]
) -> tuple[list[Finding], int]:
    """Read a shard whole: what is wrong with it, and how many bytes were read."""
    file, name = path / "shards" / shard["name"], f"shards/{shard['name']}"
    digest, size = hashlib.sha256(), 0
    try:
        with file.open("rb", buffering=0) as stream:
            while data := stream.read(READ_BYTES):
                digest.update(data)
                size += len(data)
                progress(len(data))
        if digest.hexdigest() == shard["sha256"]:
            return [], size
        rows = [] if index is None else index.filter(pc.equal(index["shard"], shard["name"])).to_pylist()
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            found = list(_located(name, memoryview(whole), rows)) if size and rows else []
    except (OSError, ValueError) as error:
        return [Finding(name, "altered", f"cannot be read ({error})")], size
    if not found:
        said = "not what its checksum in corpus.json says; by the index no member is hit"
        found = [Finding(name, "altered", said if rows else said.split(";")[0])]
    return found, size


def _located(name: str, data: memoryview, rows: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """Members of a shard that are not what the index says, and bytes between them that are not what they must be."""
    end = 0
    for row in sorted(rows, key=lambda row: row["bold_offset"]):
        for suffix in SUFFIXES:
            stem, member = MEMBER_COLUMNS[suffix], row["key"] + suffix
            start, size = row[f"{stem}_offset"], row[f"{stem}_bytes"]
            end = start + size + padding(size)
            hit = {"key": row["key"], "member": suffix}
            if start + size > len(data):
                kind = "short" if start < len(data) else "missing"
                yield Finding(name, kind, f"{member} ends at {start + size:,}, the shard at {len(data):,}", **hit)
                continue
            if data[start - BLOCK : start] != member_header(member, size):
                yield Finding(name, "altered", f"header of {member}", **hit)
            if xxhash.xxh3_64_intdigest(data[start : start + size]) != row[f"{stem}_xxh3"]:
                yield Finding(name, "altered", f"{member}{_frames(data, row) if suffix == BOLD_SUFFIX else ''}", **hit)
            if any(data[start + size : end]):
                yield Finding(name, "altered", f"padding after {member}", **hit)
    if len(data) != end + end_bytes(end) or any(data[end:]):
        yield Finding(name, "altered", f"end of the archive, from byte {end:,}")


def _frames(data: memoryview, row: dict[str, Any]) -> str:
    """Which frames of a bold member are hit, by their own checksums, as text."""
    start, size = row["frame_xxh3_offset"] + NPY_HEADER_BYTES, 8 * row["n_frames"]
    hashes = np.frombuffer(data[start : start + size], dtype="<u8")
    first, voxels = row["bold_offset"] + NPY_HEADER_BYTES, (row["bold_bytes"] - NPY_HEADER_BYTES) // row["n_frames"]
    hit = [
        t
        for t, wanted in enumerate(hashes.tolist())
        if xxhash.xxh3_64_intdigest(data[first + t * voxels : first + (t + 1) * voxels]) != wanted
    ]
    return f", frames {', '.join(map(str, hit[:8]))}{' ...' if len(hit) > 8 else ''}" if hit else ", its header"
