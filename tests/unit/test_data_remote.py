"""A corpus at a URL gives the same clips as on disk, whatever the store does short of lying consistently."""

import itertools
import os
import shutil

import fsspec
import numpy as np
import pytest

from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream, open_corpora, validation_clips
from fmri_scale.data.cache import Cache, piece_name
from fmri_scale.data.reading import ReadFault, Span
from fmri_scale.data.remote import BLOCK, merge
from fmri_scale.data.web import HttpStore
from fmri_scale.errors import DataError
from sharding.corpus import open_corpus
from tests.helpers.corpora import Segment, write_corpus
from tests.helpers.shard_server import serving

TAR = ".tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    segments = [Segment(n) for n in (128, 60, 25, 40, 100, 90)] + [Segment(50, split="val")]
    return write_corpus(tmp_path_factory.mktemp("remote") / "corpus", segments, samples_per_shard=3)


@pytest.fixture
def store(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("fmri_scale.data.reading.BACKOFF_S", 0.001)


def settings(url, tmp_path, **more):
    return DataConfig(**{"corpus": url, "cache_dir": str(tmp_path / "cache"), "stall_timeout_s": 8.0, **more})


def clips_of(config, count=40, **more):
    stream = ClipStream(open_corpora(config), config, 20, 2, 2, **more)
    batches = [(b.codes.numpy().copy(), b.scale.numpy().copy(), b.keys) for b in itertools.islice(stream, count)]
    stream.close()
    return batches


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a[0], b[0]) and np.array_equal(a[1].view(np.uint16), b[1].view(np.uint16)) and a[2] == b[2]
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def expected(folder):
    return clips_of(DataConfig(corpus=str(folder)))


@pytest.mark.parametrize(
    "how",
    [
        {"access": "range", "cache_gb": 0.0},
        {"access": "range", "cache_gb": 1.0},
        {"access": "stream", "cache_gb": 1.0},
        {"access": "stream", "cache_gb": 0.0},
        {"access": "range", "num_readers": 2},
    ],
)
def test_every_way_of_access_gives_the_clips_of_the_local_corpus(store, tmp_path, expected, how):
    assert same(clips_of(settings(store.url, tmp_path, **how)), expected)
    asked = [byte_range for path, byte_range in store.requests if path.endswith(TAR)]
    assert all(asked) if how["access"] == "range" else not any(asked)


def test_other_schemes_go_through_fsspec(folder, tmp_path, expected):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/corpus", recursive=True)
    assert same(clips_of(settings("memory://corpus", tmp_path, cache_gb=0.0)), expected)
    assert same(clips_of(settings("memory://corpus", tmp_path, access="stream")), expected)
    config = settings("nosuchscheme://bucket/corpus", tmp_path)
    with pytest.raises(DataError, match="nosuchscheme"):
        open_corpora(config)


def test_validation_and_mixed_corpora_read_from_a_url(store, tmp_path, folder):
    other = write_corpus(tmp_path / "more", [Segment(70, "other")] * 2, seed=4)
    config = settings(store.url, tmp_path, more_corpora=[str(other)])
    keys = {key for _, _, keys in clips_of(config) for key in keys}
    assert {key.split("__")[0] for key in keys} == {"phantom", "other"}
    alone = [b.clip_id.tolist() for b in validation_clips(open_corpus(folder), DataConfig(), 20, 1)]
    assert [b.clip_id.tolist() for b in validation_clips(open_corpora(config), config, 20, 1)] == alone


@pytest.mark.parametrize("access", ["range", "stream"])
@pytest.mark.parametrize(
    "faults",
    [[503, 503], ["cut", "cut"], ["long"], [429, "cut", 500], ["flip"]],
    ids=lambda faults: "-".join(map(str, faults)),
)
def test_a_store_that_recovers_costs_retries_and_nothing_else(store, tmp_path, expected, access, faults, caplog):
    config = settings(store.url, tmp_path, access=access, stall_timeout_s=4.0)
    caplog.set_level("INFO")
    corpora = open_corpora(config)
    store.faults = {TAR: list(faults)}
    stream = ClipStream(corpora, config, 20, 2, 2)
    batch = next(stream)
    assert np.array_equal(batch.codes.numpy(), expected[0][0])
    assert stream.faults.retries >= 1
    assert any("reads were repeated, of sample phantom__sub-0000" in record.message for record in caplog.records)
    assert not stream.faults.bad
    assert not store.faults[TAR]


@pytest.mark.parametrize("fault", ["short", "no_number", "other_range", "gzip", "slow", "stall"])
def test_a_store_that_lies_or_stalls_once_is_asked_again_or_named(store, tmp_path, expected, fault):
    config = settings(store.url, tmp_path, access="range", cache_gb=0.0, stall_timeout_s=2.0)
    corpora = open_corpora(config)
    store.faults = {TAR: [fault]}
    stream = ClipStream(corpora, config, 20, 2, 2)
    if fault == "gzip":
        with pytest.raises(DataError, match="compresses"):
            next(stream)
        return
    assert np.array_equal(next(stream).codes.numpy(), expected[0][0])
    assert stream.faults.retries == 1


def test_a_store_that_stalls_does_not_stop_readers_that_ask_again(store, tmp_path, expected):
    config = settings(store.url, tmp_path, cache_gb=0.0, stall_timeout_s=4.0, num_readers=2, prefetch_mb=1)
    corpora = open_corpora(config)
    store.faults = {TAR: ["stall", 503, "cut", "stall"]}
    stream = ClipStream(corpora, config, 20, 2, 2)
    got = [(b.codes.numpy().copy(), b.scale.numpy().copy(), b.keys) for b in itertools.islice(stream, 40)]
    stream.close()
    assert same(got, expected)
    assert stream.faults.retries >= 2
    assert not stream.faults.bad


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (404, "HTTP 404"),
        (503, "HTTP 503"),
        ("cut", "IncompleteRead|cut|broken"),
        ("stall", "timed out"),
        ("other_size", "not the shard of this corpus"),
        ("other_range", "asked for bytes"),
        ("flip", "checksum"),
        ("whole", "does not give byte ranges; set data.access=stream"),
    ],
)
def test_a_store_that_does_not_recover_stops_the_run_with_the_reason(store, tmp_path, fault, words):
    config = settings(store.url, tmp_path, access="range", cache_gb=0.0, retries=1, stall_timeout_s=2.0)
    corpora = open_corpora(config)
    store.always = fault
    stream = ClipStream(corpora, config, 20, 2, 2)
    with pytest.raises(DataError, match=words):
        next(stream)


def test_a_store_without_ranges_is_streamed_in_whole_shards(store, tmp_path, expected):
    config = settings(store.url, tmp_path)
    corpora = open_corpora(config)
    store.always = "whole"
    stream = ClipStream(corpora, config, 20, 2, 2)
    got = [(b.codes.numpy().copy(), b.scale.numpy().copy(), b.keys) for b in itertools.islice(stream, 40)]
    assert same(got, expected)
    assert sum(path.endswith(TAR) and not asked for path, asked in store.requests) <= 3 * 3


def test_a_streamed_shard_with_one_wrong_byte_never_enters_the_cache(store, tmp_path):
    config = settings(store.url, tmp_path, access="stream", retries=0)
    corpora = open_corpora(config)
    store.always = "flip"
    with pytest.raises(DataError, match=r"sha256|checksum|USTAR|padding|not the name"):
        next(ClipStream(corpora, config, 20, 2, 2))
    assert not list(Cache(tmp_path / "cache" / "pieces", 10**9).pieces())


def test_missing_and_cut_shards_are_listed_before_training(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "broken")
    shards = sorted((tmp_path / "broken" / "shards").iterdir())
    shards[0].unlink()
    with shards[1].open("r+b") as file:
        file.truncate(1000)
    with serving(tmp_path / "broken") as server:
        for place in (str(tmp_path / "broken"), server.url):
            with pytest.raises(DataError, match=r"2 of 3 shards cannot be used(.|\n)*000000(.|\n)*1000 bytes"):
                open_corpora(settings(place, tmp_path))


def test_what_is_no_corpus_is_refused_by_name(store, tmp_path):
    with pytest.raises(DataError, match="not a corpus that can be read"):
        open_corpora(settings(f"{store.url}/nothing", tmp_path))
    with pytest.raises(DataError, match=r"data\.corpus is not set"):
        open_corpora(DataConfig())
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/corpus\.json"):
        open_corpora(settings("http://127.0.0.1:9", tmp_path))


def test_spans_close_together_are_one_request():
    spans = [Span(offset, [memoryview(bytearray(100))]) for offset in (5000, 0, 100, 10**9)]
    merged = merge(spans)
    assert [(s.offset, s.size) for s in merged] == [(0, 5100), (10**9, 100)]


def fill(data):
    def fetch(file):
        os.write(file, data)

    return fetch


def test_cache_names_cannot_collide_and_the_oldest_go_first(tmp_path):
    cache = Cache(tmp_path / "c", 2500)
    names = [piece_name(url, 7) for url in ("http://a/x.tar", "http://b/x.tar", "http://a/x.tar\n7", "d")]
    assert len(set(names)) == 4
    for age, name in enumerate(names[:2]):
        os.close(cache.open(name, fill(name[:1].encode() * 1000)))
        os.utime(tmp_path / "c" / name[:2] / name, (age + 1, age + 1))
    (tmp_path / "c" / "ab").mkdir(exist_ok=True)
    (tmp_path / "c" / "ab" / "somebody-elses-file").write_bytes(b"x" * 5000)
    os.close(cache.open(names[0], fill(b"")))  # used again, so names[1] is now the oldest
    os.close(cache.open(names[2], fill(b"z" * 1000)))
    kept = {path.name for path, _ in cache.pieces()}
    assert kept == {names[0], names[2]}
    assert (tmp_path / "c" / "ab" / "somebody-elses-file").exists()
    assert cache.hits == 1


def test_a_piece_that_cannot_be_fetched_leaves_nothing(tmp_path):
    cache = Cache(tmp_path / "c", 2500)

    def fetch(file):
        os.write(file, b"half")
        raise ReadFault("cut")

    with pytest.raises(ReadFault):
        cache.open(piece_name("x"), fetch)
    assert not list(cache.pieces())


def test_blocks_of_a_cached_shard_are_fetched_once(store, tmp_path):
    config = settings(store.url, tmp_path, access="range")
    clips_of(config, 100)
    asked = [(path, byte_range) for path, byte_range in store.requests if byte_range]
    assert len(asked) == len(set(asked)) == 2  # one block of each shard that has clips of the training split
    assert all(int(r.split("=")[1].split("-")[0]) % BLOCK == 0 for _, r in asked)


def test_redirects_are_followed_and_small_files_are_bounded(store):
    web = HttpStore(2.0)
    store.faults = {"corpus.json": ["redirect", "redirect"]}
    content = (store.folder / "corpus.json").read_bytes()
    assert web.whole(f"{store.url}/corpus.json", 1 << 20) == content
    assert web.size(f"{store.url}/corpus.json") == len(content)
    with pytest.raises(ReadFault, match="more than 10 bytes"):
        web.whole(f"{store.url}/corpus.json", 10)
