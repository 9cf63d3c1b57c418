"""A tar or an index that means harm is refused with a reason: nothing is executed, written or allocated."""

import gzip
import io
import json
import pickle
import resource
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream, ShardSource, open_corpora
from fmri_scale.data.tar import TarError, walk
from fmri_scale.data.wds import decode_member
from fmri_scale.errors import DataError
from sharding.corpus import open_corpus
from sharding.write import npy_bytes
from tests.helpers.corpora import Segment, write_corpus
from tests.helpers.shard_server import serving


class Payload:
    """What pickle would run."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def tar_of(members, links=()):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return file.getvalue()


def claiming(name, size_field, kind=b"0"):
    """A USTAR header, whole but for what it claims."""
    info = tarfile.TarInfo(name)
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157] = size_field, kind
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def hostile(tmp_path):
    harm = pickle.dumps(Payload(tmp_path / "executed"))
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(tmp_path / "executed")], dtype=object), allow_pickle=True)
    good = npy_bytes(np.zeros((4, 5), np.int8))
    whole = tar_of([("k.bold.npy", good)])
    renamed = bytearray(whole)
    renamed[0:10] = b"../../etc."
    return {
        "pyd": tar_of([("k.pyd", harm)]),
        "pickle": tar_of([("k.pickle", harm)]),
        "pkl": tar_of([("k.bold.npy", good), ("k.pkl", harm)]),
        "pth": tar_of([("k.pth", harm)]),
        "pickle under a good name": tar_of([("k.json", harm)]),
        "object array": tar_of([("k.bold.npy", objects.getvalue())]),
        "wrong dtype": tar_of([("k.bold.npy", npy_bytes(np.zeros((4, 5), np.float64)))]),
        "shape of 10 GB": tar_of([("k.bold.npy", good.replace(b"(4, 5)", b"(100000, 100000)")[: len(good)])]),
        "absolute name": tar_of([("/tmp/k.bold.npy", good)]),
        "parent folder": tar_of([("../k.bold.npy", good)]),
        "folder in the middle": tar_of([("a/../../k.bold.npy", good)]),
        "dot in the key": tar_of([("sub-01.a.bold.npy", good)]),
        "symbolic link": tar_of([], [("k.bold.npy", tarfile.SYMTYPE, "/etc/passwd")]),
        "hard link": tar_of([], [("k.bold.npy", tarfile.LNKTYPE, "/etc/passwd")]),
        "device": tar_of([], [("k.bold.npy", tarfile.CHRTYPE, "")]),
        "folder": tar_of([], [("k", tarfile.DIRTYPE, "")]),
        "10 GB claimed": claiming("k.bold.npy", b"%012o" % (10 << 30)),
        "10 GB claimed in base 256": claiming("k.bold.npy", b"\x80" + (10 << 30).to_bytes(11, "big")),
        "10 GB of JSON claimed": claiming("k.json", b"%012o" % (10 << 30)),
        "8 exabytes claimed": claiming("k.bold.npy", b"\x80" + (1 << 62).to_bytes(11, "big")),
        "long name of 10 GB": claiming("././@LongLink", b"%012o" % (10 << 30), b"L"),
        "extended header of 10 GB": claiming("PaxHeader/k", b"%012o" % (10 << 30), b"x"),
        "sparse file of 10 GB": claiming("k.bold.npy", b"%012o" % (10 << 30), b"S"),
        "10 GB claimed by a GNU header": tarfile.TarInfo("k.bold.npy").tobuf(tarfile.GNU_FORMAT),
        "gzip": gzip.compress(whole),
        "xz": b"\xfd7zXZ\x00" + bytes(600),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(600),
        "not a tar": b"hello" * 300,
        "name changed": bytes(renamed),
        "cut": whole[:600],
        "cut after a member": whole[:1024],
        "bytes after the end": whole + b"x" * 512,
        "empty": b"",
        "samples without their parts": whole,
        "a member twice": tar_of([("k.bold.npy", good), ("k.bold.npy", good)]),
    }


NAMES = sorted(hostile(Path("/nowhere")))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_shards_are_refused_in_whole_shard_reading(tmp_path, name):
    shard = tmp_path / "shard.tar"
    shard.write_bytes(hostile(tmp_path)[name])
    before = set(tmp_path.iterdir())
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), limit[1]))  # 10 GB would be a MemoryError
    try:
        with pytest.raises(DataError, match=r"shard\.tar: "):
            list(ShardSource([shard]))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", NAMES)
def test_hostile_shards_at_a_url_never_reach_the_cache(tmp_path, name):
    write_corpus(tmp_path / "corpus", [Segment(40)])
    shard = next((tmp_path / "corpus" / "shards").iterdir())
    shard.write_bytes(hostile(tmp_path)[name])
    description = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    description["shards"][0]["bytes"] = max(shard.stat().st_size, 10240)
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(description))
    with serving(tmp_path / "corpus") as server:
        config = DataConfig(
            corpus=server.url, cache_dir=str(tmp_path / "cache"), retries=0, access="stream", stall_timeout_s=4.0
        )
        corpora = open_corpora(config, check_shards=False)
        with pytest.raises(DataError, match=r"cannot be|shard|corpus"):
            next(ClipStream(corpora, config, 20, 1, 1))
    assert not (tmp_path / "executed").exists()
    kept = [path for path in (tmp_path / "cache" / "pieces").rglob("*") if path.is_file()]
    assert all(path.name.startswith("lock-") for path in kept)


def test_a_hostile_tar_under_a_good_index_is_a_wrong_checksum(tmp_path):
    folder = write_corpus(tmp_path / "corpus", [Segment(40)])
    shard = next((folder / "shards").iterdir())
    size = shard.stat().st_size
    content = tar_of([("k.pyd", pickle.dumps(Payload(tmp_path / "executed")))])
    shard.write_bytes(content[:size].ljust(size, b"\0"))
    with pytest.raises(DataError, match=r"checksum|header"):
        next(ClipStream(open_corpus(folder), DataConfig(retries=0), 20, 1, 1))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("bold_bytes", 10 << 30, "bold_bytes=10737418240 cannot be"),
        ("bold_offset", 1 << 60, "bold_offset"),
        ("scale_offset", -1, "scale_offset=-1"),
        ("n_frames", 1 << 40, "n_frames"),
        ("n_frames", 0, "n_frames=0"),
        ("frame_xxh3_bytes", 8, "frame_xxh3_bytes"),
        ("sd", 0.0, "sd=0.0"),
        ("mean", float("nan"), "mean=nan"),
        ("unit", float("inf"), "unit=inf"),
        ("shard", "../../etc/passwd", "not in corpus.json"),
        ("key", "../../x", "not a legal key"),
        ("key", "sub-01.tr0.8", "not a legal key"),
    ],
)
def test_an_index_that_cannot_be_is_refused_by_row(tmp_path, column, value, words):
    folder = write_corpus(tmp_path / "corpus", [Segment(40), Segment(60)])
    table = pq.read_table(folder / "index.parquet")
    rows = table.to_pylist()
    rows[1][column] = value
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "index.parquet")
    with pytest.raises(DataError, match=words):
        ClipStream(open_corpus(folder), DataConfig(), 20, 1, 1)


def test_shard_names_that_are_paths_are_refused(tmp_path):
    folder = write_corpus(tmp_path / "corpus", [Segment(40)])
    description = json.loads((folder / "corpus.json").read_text())
    description["shards"][0]["name"] = "../../../../etc/hosts"
    (folder / "corpus.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="not a plain file name"):
        ClipStream(open_corpus(folder, check_shards=False), DataConfig(), 20, 1, 1)


@pytest.mark.parametrize("suffix", [".bold.npy", ".scale.npy", ".json"])
def test_random_bytes_are_refused_by_the_decoder(suffix):
    rng = np.random.default_rng(0)
    for size in (0, 1, 10, 127, 128, 129, 1000):
        with pytest.raises(TarError):
            decode_member(suffix, rng.integers(0, 256, size, dtype=np.uint8).tobytes())
    with pytest.raises(TarError, match="no member has the suffix"):
        decode_member(".pyd", b"")


def test_walking_needs_no_more_memory_than_a_piece(tmp_path):
    def endless():
        yield claiming("k.bold.npy", b"%011o\0" % 113_000_000)
        while True:
            yield bytes(1 << 16)

    members = walk(endless(), keep=False)
    assert next(members).data == b""
    with pytest.raises(TarError, match="after the end"):
        next(members)
