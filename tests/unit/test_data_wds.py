"""webdataset around the loader: the plan's order with any number of workers; stock webdataset reads our shards."""

import itertools

import numpy as np
import pytest
import webdataset as wds

from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream, PlanSource, ShardSource, open_corpora
from fmri_scale.errors import DataError
from sharding.corpus import open_corpus
from tests.helpers.corpora import Segment, write_corpus
from tests.helpers.shard_server import serving


@pytest.fixture(scope="module")
def content():
    return {}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, content):
    segments = [Segment(n) for n in (128, 40, 25, 60, 100, 20)]
    return open_corpus(write_corpus(tmp_path_factory.mktemp("wds") / "corpus", segments, codes=content))


def double(sample):
    return {**sample, "twice": sample["bold.npy"].astype(np.int16) * 2}


def loader(corpus, workers, batch=3, **more):
    source = PlanSource(corpus, DataConfig(**more.pop("config", {})), 20, batch, seed=7, **more)
    pipeline = wds.DataPipeline(source, wds.map(double), wds.batched(batch, collation_fn=list, partial=False))
    return wds.WebLoader(pipeline, batch_size=None, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_give_the_order_of_one_process(corpus, content, workers):
    stream = ClipStream(corpus, DataConfig(), 20, 3, 3, seed=7)
    for batch, expected in zip(itertools.islice(loader(corpus, workers), 12), stream, strict=False):
        assert [sample["json"]["clip_id"] for sample in batch] == expected.clip_id.tolist()
        for sample, codes in zip(batch, expected.codes.numpy(), strict=True):
            assert np.array_equal(sample["bold.npy"], codes)
            assert np.array_equal(sample["twice"], 2 * codes.astype(np.int16))
            start = sample["json"]["start_frame"]
            assert np.array_equal(codes, content[sample["json"]["key"]][start : start + 20])


def test_a_store_without_ranges_gives_the_same_order_through_the_pipeline(corpus, tmp_path):
    expected = PlanSource(corpus, DataConfig(), 20, 3, seed=7).plan.clips(np.arange(36)).clip_id.tolist()
    with serving(corpus.path) as server:
        server.always = "whole"
        remote = {"corpus": server.url, "cache_dir": str(tmp_path / "cache"), "stall_timeout_s": 8.0}
        batches = itertools.islice(loader(open_corpora(DataConfig(**remote)), 2, config=remote), 12)
        assert [sample["json"]["clip_id"] for batch in batches for sample in batch] == expected
        assert any(path.endswith(".tar") for path, _ in server.requests)


def test_ranks_and_restarts_go_on_in_the_same_order(corpus):
    plan = PlanSource(corpus, DataConfig(), 20, 1, seed=7).plan
    seen, position = [], 0
    for world, batch, turns, workers in ((4, 2, 3, 2), (2, 3, 2, 0), (3, 1, 5, 1)):
        parts = [
            list(itertools.islice(loader(corpus, workers, batch, position=position, rank=r, world_size=world), turns))
            for r in range(world)
        ]
        seen += [s["json"]["clip_id"] for turn in zip(*parts, strict=True) for part in turn for s in part]
        position += world * batch * turns
    assert seen == plan.clips(np.arange(position)).clip_id.tolist()


def test_voxel_statistics_come_where_they_are_wanted(corpus):
    sample = next(iter(PlanSource(corpus, DataConfig(normalisation="voxel_z"), 20, 1)))
    assert sample["stats.npy"].shape == sample["scale.npy"].shape == (2, 60)
    assert "stats.npy" not in next(iter(PlanSource(corpus, DataConfig(), 20, 1)))


def test_a_damaged_clip_ends_the_pipeline_by_name(tmp_path):
    corpus = open_corpus(write_corpus(tmp_path / "corpus", [Segment(40)]))
    shard = next((corpus.path / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[512 + 128 : 512 + 128 + 40 * 60] = bytes(40 * 60)
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"phantom__sub-00000__000000 of shard .*checksum"):
        next(iter(loader(corpus, 0, config={"retries": 0})))
    with pytest.raises(DataError, match="checksum of a frame"):
        list(ShardSource([shard]))


def test_whole_shards_are_read_in_a_pipeline(corpus, content):
    shards = sorted((corpus.path / "shards").iterdir())
    pipeline = wds.DataPipeline(ShardSource(shards), wds.map(double))
    samples = {sample["__key__"]: sample for sample in wds.WebLoader(pipeline, batch_size=None, num_workers=2)}
    assert set(samples) == set(content)
    for key, sample in samples.items():
        assert np.array_equal(np.asarray(sample["bold.npy"]), content[key])
        assert sample["json"]["n_frames"] == len(sample["bold.npy"])


def test_stock_webdataset_reads_our_shards(corpus, content):
    shards = [str(path) for path in sorted((corpus.path / "shards").iterdir())]
    for sample in wds.WebDataset(shards, shardshuffle=False).decode():
        assert np.array_equal(sample["bold.npy"], content[sample["__key__"]])
        assert sample["scale.npy"].dtype == np.float16
