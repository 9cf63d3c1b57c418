"""The batches of all ranks are the plan, exactly once, whatever the number of ranks and wherever it was resumed."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream, sample_table, validation_clips
from fmri_scale.data.agreement import _notes, compare
from fmri_scale.data.reading import ClipReader
from fmri_scale.data.validation import weighted_mean
from fmri_scale.errors import CheckpointError, ConfigError, DataError
from sharding.corpus import open_corpus
from tests.helpers.corpora import Segment, write_corpus

FRAMES = [128, 40, 25, 60, 19, 100, 20]


@pytest.fixture(scope="module")
def content():
    return {}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, content):
    segments = [Segment(n, d) for d in ("one", "two") for n in FRAMES]
    segments += [Segment(n, split="val") for n in (128, 50, 33)]
    return open_corpus(write_corpus(tmp_path_factory.mktemp("data") / "corpus", segments, codes=content))


def stream(corpus, rank=0, world=1, micro=1, batch=12, **settings):
    position, frames = settings.pop("position", 0), settings.pop("frames", 20)
    return ClipStream(corpus, DataConfig(**settings), frames, batch, micro, rank, world, seed=7, position=position)


def test_batches_hold_the_frames_that_the_plan_names(corpus, content):
    clips = stream(corpus, micro=3, normalisation="voxel_z")
    assert (clips.table.n_frames >= 1).all()
    for number, batch in enumerate(itertools.islice(clips, 30)):
        assert batch.position.tolist() == [3 * number, 3 * number + 1, 3 * number + 2]
        for i, key in enumerate(batch.keys):
            start = int(batch.start_frame[i])
            assert np.array_equal(batch.codes[i].numpy(), content[key][start : start + 20])
            assert batch.mean[i] == pytest.approx(700 + int(key.split("-")[1][:5]))
        assert batch.scale.shape == batch.stats.shape == (3, 2, 60)
    clips.close()


def test_batches_that_are_kept_are_never_written_over(corpus, content):
    clips = stream(corpus, micro=2, prefetch_mb=1)
    kept = [next(clips) for _ in range(200)]
    for batch in kept:
        for i, key in enumerate(batch.keys):
            start = int(batch.start_frame[i])
            assert np.array_equal(batch.codes[i].numpy(), content[key][start : start + 20])


def ids(batches):
    return [i for batch in batches for i in batch.clip_id.tolist()]


@pytest.fixture
def reads(corpus, monkeypatch):
    """The clips that are really read, as (row, start frame), in the order of reading; the index is made once."""
    table = sample_table([corpus], "train")
    monkeypatch.setattr("fmri_scale.data.stream.sample_table", lambda corpora, split: table)
    log, read = [], ClipReader.read

    def logged(self, request, views, place):
        log.append((request.row, request.start_frame))
        return read(self, request, views, place)

    monkeypatch.setattr(ClipReader, "read", logged)
    return log


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ranks_and_restarts_give_three_epochs_in_the_order_of_one_process(corpus, reads, data):
    batch = 48
    reference = stream(corpus, batch=batch)
    size = reference.plan.pools[0].num_clips
    expected = reference.plan.clips(np.arange(3 * size + 2 * batch))
    reference.close()
    state, seen = None, []
    while len(seen) < 3 * size:
        world = data.draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]))
        micro = data.draw(st.sampled_from([m for m in (1, 2, 3, 4) if batch % (m * world) == 0]))
        ranks = [stream(corpus, r, world, micro, batch) for r in range(world)]
        reads.clear()
        for clips in ranks:
            if state:
                clips.load_state_dict(json.loads(json.dumps(state)))
        for _ in range(data.draw(st.integers(1, 2))):
            for _ in range(batch // (micro * world)):
                seen += ids(next(clips) for clips in ranks)
            for clips in ranks:
                clips.advance(batch)
        here = slice(len(seen) - len(reads), len(seen))
        assert reads == list(zip(expected.sample[here], expected.start_frame[here], strict=True))
        ahead = data.draw(st.integers(0, 2))  # handed out, but no optimizer step was made with them
        for clips in ranks:
            list(itertools.islice(clips, ahead))
        state = ranks[0].state_dict()
        assert all(clips.state_dict() == state for clips in ranks)
        compare([_notes(clips) for clips in ranks], 0.0, 0)
        for clips in ranks:
            clips.close()
    assert seen == expected.clip_id[: len(seen)].tolist()
    for epoch in range(3):
        assert len(set(seen[epoch * size : (epoch + 1) * size])) == size


def test_the_running_hash_is_that_of_an_unbroken_run(corpus):
    whole, broken = stream(corpus), stream(corpus)
    whole.advance(60)
    broken.advance(24)
    other = stream(corpus, 1, 2)
    other.load_state_dict(broken.state_dict())
    other.advance(36)
    assert other.clip_hash == whole.clip_hash != broken.clip_hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lanes": 4}, "data.lanes was 1, is 4"),
        ({"frames": 30}, r"clip length\) was .*frames drawn for a clip \(.*objective.span_frames\) was 20, is 30"),
        ({"weights": {"one": 1.0, "two": 2.0}}, "data.weights"),
        ({"split": "val"}, "data.split"),
        ({"min_jitter": 3}, "data.min_jitter was 0, is 3"),
    ],
)
def test_a_resume_in_another_order_is_refused_unless_told(corpus, change, words):
    saved = stream(corpus)
    saved.advance(12)
    other = stream(corpus, **change)
    with pytest.raises(CheckpointError, match=words):
        other.load_state_dict(saved.state_dict())
    assert other.position == 0
    other.load_state_dict(saved.state_dict(), allow_change=True)
    assert next(other).position.tolist() == [12]


def test_a_resume_on_another_corpus_is_refused(corpus, tmp_path):
    saved = stream(corpus).state_dict()
    other = open_corpus(write_corpus(tmp_path / "other", [Segment(100)] * 3, seed=5))
    with pytest.raises(CheckpointError, match=r"the corpus \(data.corpus, data.more_corpora\) was"):
        stream(other).load_state_dict(saved)
    with pytest.raises(CheckpointError, match="no 'seed'"):
        stream(corpus).load_state_dict({name: value for name, value in saved.items() if name != "seed"})


def test_a_global_batch_that_ranks_cannot_share_evenly_is_refused(corpus):
    with pytest.raises(ConfigError, match="nearest are 10 and 15"):
        stream(corpus, world=5, batch=12)


def test_several_corpora_are_read_as_one(corpus, tmp_path, content):
    more = dict(content)
    other = open_corpus(write_corpus(tmp_path / "more", [Segment(90, "three")] * 5, seed=3, codes=more))
    clips = ClipStream([corpus, other], DataConfig(), 20, 4, 4)
    size = clips.plan.pools[0].num_clips
    keys = set()
    for batch in itertools.islice(clips, size // 4):
        keys.update(batch.keys)
        for i, key in enumerate(batch.keys):
            start = int(batch.start_frame[i])
            assert np.array_equal(batch.codes[i].numpy(), more[key][start : start + 20])
    assert {key.split("__")[0] for key in keys} == {"one", "two", "three"}


def test_corpora_of_other_masks_or_equal_keys_are_refused(corpus, tmp_path):
    other = open_corpus(write_corpus(tmp_path / "mask", [Segment(90, "three")], num_voxels=50))
    with pytest.raises(DataError, match="its mask"):
        ClipStream([corpus, other], DataConfig(), 20, 4, 4)
    with pytest.raises(DataError, match="same key"):
        ClipStream([corpus, corpus], DataConfig(), 20, 4, 4)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_validation_is_the_same_for_any_number_of_ranks(corpus, world):
    per_rank = [list(validation_clips(corpus, DataConfig(), 20, 2, r, world)) for r in range(world)]
    assert len({len(batches) for batches in per_rank}) == 1
    counted = [b for turn in zip(*per_rank, strict=True) for b in turn if b.valid.all()]
    assert all(bool(b.valid.any()) == bool(b.valid.all()) for batches in per_rank for b in batches)
    alone = list(validation_clips(corpus, DataConfig(), 20, 2))
    assert ids(counted) == ids(alone)
    assert len(set(ids(alone))) == 9  # 6 of 128 frames, 2 of 50, 1 of 33
    assert [len(b) for b in counted] == [2, 2, 2, 2, 1]


def test_validation_can_be_a_part_of_the_split_and_is_spread_over_it(corpus):
    part = [key for b in validation_clips(corpus, DataConfig(), 20, 2, num_clips=3) for key in b.keys]
    assert len(part) == 3
    assert len(set(part)) == 2
    with pytest.raises(DataError, match="no sample in split 'test'"):
        next(validation_clips(corpus, DataConfig(), 20, 2, split="test"))


def test_weighted_mean_counts_only_valid_clips():
    assert weighted_mean(6.0, 4) == 1.5


def test_a_damaged_frame_stops_the_run_and_names_the_clip(corpus, tmp_path):
    shutil.copytree(corpus.path, tmp_path / "damaged")
    damaged = open_corpus(tmp_path / "damaged")
    clips = stream(damaged, retries=0)
    row = int(clips.plan.clips(np.arange(5)).sample[2])
    file = damaged.shard_path(clips.table.shards[int(clips.table.shard[row])].name)
    data = bytearray(file.read_bytes())
    start = int(clips.table.columns["bold_offset"][row]) + 128
    size = int(clips.table.n_frames[row]) * 60
    data[start : start + size] = bytes(255 - b for b in data[start : start + size])
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"{clips.table.key(row)} from frame .*checksum"):
        list(itertools.islice(clips, 3))


def test_moving_a_batch_keeps_everything(corpus):
    batch = next(stream(corpus, micro=2)).to("cpu")
    assert batch.codes.dtype == torch.int8
    assert len(batch) == len(batch.keys) == 2
