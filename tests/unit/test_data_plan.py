"""The order of the data is a permutation per epoch, computed from the position alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmri_scale.data.keyed import fold, key_of, mix64, permutation, permute_one, uniform
from fmri_scale.data.mixing import BLOCK
from fmri_scale.data.plan import Order, Plan
from fmri_scale.data.pool import clips_per_sample
from fmri_scale.errors import ConfigError, DataError
from tests.helpers.tables import made_up_table

lengths = st.lists(st.integers(1, 128), min_size=1, max_size=40).filter(lambda n: max(n) >= 20)
orders = st.builds(
    Order,
    num_frames=st.integers(2, 20),
    seed=st.integers(0, 2**32),
    lanes=st.integers(1, 9),
    block=st.sampled_from([0, 1, 3, 16]),
    min_jitter=st.integers(0, 20),
)


@given(st.integers(0, 2**64 - 1), st.integers(1, 300))
def test_permutation_of_any_size_has_every_place_once(key, size):
    whole = permutation(key, size)
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert [permute_one(key, size, i) for i in range(size)] == whole.tolist()


def test_permutations_of_many_keys_send_every_place_everywhere_equally_often():
    size, keys = 7, 4000
    counts = np.zeros((size, size))
    for number in range(keys):
        counts[np.arange(size), permutation(key_of(number), size)] += 1
    spread = np.sqrt(keys / size * (1 - 1 / size))
    assert np.abs(counts - keys / size).max() < 5 * spread


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_hashes_of_ints_and_arrays_are_the_same(parts, key):
    array = np.array(parts, np.uint64)
    assert mix64(array).tolist() == [mix64(part) for part in parts]
    assert fold(key, array).tolist() == [fold(key, part) for part in parts]
    assert uniform(array).tolist() == [uniform(part) for part in parts]
    assert all(0 <= u < 1 for u in uniform(array))


@settings(deadline=None)
@given(lengths, orders)
def test_an_epoch_visits_whole_clips_once_without_overlap(n_frames, order):
    table = made_up_table(n_frames)
    plan = Plan(table, order)
    size = plan.pools[0].num_clips
    for epoch in (0, 1, 5):
        clips = plan.clips(np.arange(epoch * size, (epoch + 1) * size))
        assert (clips.epoch == epoch).all()
        seen = np.zeros((len(n_frames), 128), int)
        for row, start in zip(clips.sample, clips.start_frame, strict=True):
            assert 0 <= start <= n_frames[row] - order.num_frames
            seen[row, start : start + order.num_frames] += 1
        assert seen.max() == 1
        expected = clips_per_sample(table.n_frames, order.num_frames, order.min_jitter)
        assert np.array_equal(np.bincount(clips.sample, minlength=len(n_frames)), expected)
        assert np.unique(clips.clip_id).size == size
        assert (clips.clip_id >= 0).all()


@settings(deadline=None)
@given(lengths, orders, st.integers(1, 3), st.integers(0, 10**12))
def test_one_position_and_many_give_the_same_clips(n_frames, order, datasets, first):
    table = made_up_table(sorted(n_frames * 3, reverse=True), datasets)
    try:
        plan = Plan(table, order, temperature=2.0 if datasets > 1 else 1.0)
    except DataError:
        return  # a dataset whose samples are all too short
    positions = first + np.arange(0, 200, 7)
    assert [plan.clip(int(k)) for k in positions] == [tuple(c) for c in zip(*plan.clips(positions), strict=True)]


def test_clip_boundaries_move_from_epoch_to_epoch():
    plan = Plan(made_up_table([128]), Order(num_frames=20, seed=1))
    phases = {int(plan.clips(np.arange(6 * e, 6 * e + 6)).start_frame.min()) for e in range(100)}
    assert phases == set(range(9))


def test_min_jitter_moves_boundaries_that_nothing_else_would_move():
    n_frames = [128] * 10
    assert {int(s) for s in Plan(made_up_table(n_frames), Order(32, 0)).clips(np.arange(400)).start_frame} == {
        0,
        32,
        64,
        96,
    }
    moved = Plan(made_up_table(n_frames), Order(32, 0, min_jitter=31))
    assert moved.pools[0].num_clips == 30
    assert len({int(s) for s in moved.clips(np.arange(4000)).start_frame}) == 97


def test_order_changes_with_seed_and_epoch_and_nothing_else():
    table, order = made_up_table([128] * 30), Order(20, 3)
    plan = Plan(table, order)
    size = plan.pools[0].num_clips
    first = plan.clips(np.arange(size)).clip_id
    assert np.array_equal(first, Plan(table, order).clips(np.arange(size)).clip_id)
    assert not np.array_equal(first, plan.clips(np.arange(size, 2 * size)).clip_id)
    assert not np.array_equal(first, Plan(table, Order(20, 4)).clips(np.arange(size)).clip_id)
    assert plan.hash() == Plan(table, order).hash() != Plan(table, Order(20, 4)).hash()


def test_clip_ids_do_not_depend_on_what_else_the_corpus_holds():
    small, large = made_up_table([128] * 5), made_up_table([128] * 50)
    few = set(Plan(small, Order(32, 0)).clips(np.arange(20)).clip_id.tolist())
    many = set(Plan(large, Order(32, 9)).clips(np.arange(200)).clip_id.tolist())
    assert few <= many


def test_lanes_keep_a_reader_within_few_shards():
    table = made_up_table([128] * 240, samples_per_shard=6)
    lanes = 8

    def shards_in_reach(order):
        """Most different shards among 8 successive blocks of clips of one lane."""
        plan = Plan(table, order)
        clips = plan.clips(np.arange(0, plan.pools[0].num_clips, lanes))
        shard = table.shard[clips.sample]
        return max(np.unique(shard[i : i + 16]).size for i in range(0, shard.size - 16, 16))

    assert shards_in_reach(Order(20, 0, lanes, 16)) <= 2
    assert shards_in_reach(Order(20, 0)) >= 8


@pytest.mark.parametrize("weights", [{"d0": 1.0, "d1": 3.0, "d2": 0.5}, {"d0": 1.0, "d1": 1.0, "d2": 0.0}])
def test_mixing_keeps_the_shares_and_every_datasets_own_epochs(weights):
    table = made_up_table([128] * 10 + [60] * 10 + [40] * 10, 3)
    plan = Plan(table, Order(20, 5), weights)
    clips = plan.clips(np.arange(4 * BLOCK))
    dataset = table.dataset[clips.sample]
    share = np.array([weights[f"d{d}"] for d in range(3)])
    share /= share.sum()
    assert np.abs(np.bincount(dataset, minlength=3) / (4 * BLOCK) - share).max() <= 1 / BLOCK
    sizes = clips_per_sample(table.n_frames, 20, 0).reshape(3, 10).sum(1)
    for number in np.flatnonzero(share):
        mine = dataset == number
        for epoch in range(int(clips.epoch[mine].max())):
            chosen = mine & (clips.epoch == epoch)
            assert chosen.sum() == sizes[number] == np.unique(clips.clip_id[chosen]).size


def test_temperature_flattens_shares():
    table = made_up_table([120] * 30 + [20] * 30, 2)  # 180 clips and 30
    by_size = Plan(table, Order(20, 0))
    assert by_size.mixture is None
    assert by_size.report()[0]["clips_per_epoch"] == 210
    assert Plan(table, Order(20, 0), temperature=1e9).mixture.counts.tolist() == [BLOCK // 2, BLOCK // 2]
    flat = Plan(table, Order(20, 0), temperature=2.0).report()
    assert flat[0]["share"] == pytest.approx(6**0.5 / (6**0.5 + 1), abs=1 / BLOCK)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"d0": 1.0}, "no weight for dataset 'd1'"),
        ({"d0": 1.0, "d1": 1.0, "dx": 1.0}, "no dataset 'dx'"),
        ({"d0": 1.0, "d1": -1.0}, "at least 0"),
        ({"d0": 0.0, "d1": 0.0}, "above 0"),
        ({"d0": 1.0, "d1": 1e-9}, "the least is"),
    ],
)
def test_weights_that_make_no_sense_are_refused_by_name(weights, words):
    with pytest.raises(ConfigError, match=words):
        Plan(made_up_table([128] * 4, 2), Order(20, 0), weights)


def test_samples_shorter_than_a_clip_are_left_out_and_counted():
    report = Plan(made_up_table([128, 19, 20]), Order(20, 0)).report()[0]
    assert (report["samples"], report["samples_too_short"], report["frames_per_epoch"]) == (2, 1, 140)
    with pytest.raises(DataError, match="no sample has 30 frames"):
        Plan(made_up_table([10, 19, 20]), Order(30, 0))


def test_a_substitute_is_another_clip_of_the_same_dataset_and_epoch():
    table = made_up_table([128] * 10 + [60] * 10, 2)
    plan = Plan(table, Order(20, 0), {"d0": 1, "d1": 1})
    for k in range(0, 3000, 17):
        clip, instead = plan.clip(k), plan.substitute(k, 0)
        assert instead == plan.substitute(k, 0) != plan.substitute(k, 1)
        assert instead.clip_id != clip.clip_id
        assert instead.epoch == clip.epoch
        assert table.dataset[instead.sample] == table.dataset[clip.sample]
