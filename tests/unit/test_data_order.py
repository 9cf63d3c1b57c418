"""Exactly once, in one order: for any corpus, ranks, workers, batch sizes and restarts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fmri_scale.data.plan import Order, Plan, share
from tests.helpers.tables import made_up_table

corpora = st.builds(
    made_up_table,
    st.lists(st.integers(1, 128), min_size=1, max_size=30).filter(lambda n: max(n) >= 20),
    samples_per_shard=st.integers(1, 5),
    seed=st.integers(0, 99),
)
orders = st.builds(
    Order,
    num_frames=st.integers(5, 20),
    seed=st.integers(0, 2**32),
    lanes=st.integers(1, 16),
    block=st.sampled_from([0, 2, 7]),
    min_jitter=st.sampled_from([0, 4]),
)


def consumed_by(plan, position, steps, micro, world, workers, accumulation):
    """Return what each rank's loader gives in `steps` optimizer steps: positions [ranks, batches, micro], in turn."""
    turns = steps * accumulation
    ranks = []
    for rank in range(world):
        by_worker = [
            iter(share(position, micro, rank, world, range(w, turns, max(workers, 1)))) for w in range(workers)
        ]
        if workers:
            # The loader asks its workers in turn, as torch's does.
            ranks.append([next(by_worker[turn % workers]) for turn in range(turns)])
        else:
            ranks.append(list(share(position, micro, rank, world, range(turns))))
    return np.array(ranks)


@settings(deadline=None, max_examples=60)
@given(corpora, orders, st.data())
def test_every_clip_once_per_epoch_in_the_order_of_one_process(table, order, data):
    plan = Plan(table, order)
    size = plan.pools[0].num_clips
    expected = plan.clips(np.arange(3 * size))
    position, seen, last_world = 0, [], 0
    while position < 3 * size:
        world = (last_world + data.draw(st.integers(0, 14), "change of world")) % 16 + 1  # never the same twice
        workers = data.draw(st.integers(0, 4), "workers")
        micro, accumulation = data.draw(st.integers(1, 4), "micro"), data.draw(st.integers(1, 3), "accumulation")
        steps = data.draw(st.integers(1, max(1, 2 * size // (micro * world * accumulation))), "steps")
        given_out = consumed_by(plan, position, steps, micro, world, workers, accumulation)
        assert given_out.shape == (world, steps * accumulation, micro)  # equally many batches on every rank
        assert given_out.min() == position  # nothing that was consumed is read again
        in_order = given_out.transpose(1, 0, 2).ravel()
        assert np.array_equal(in_order, np.arange(position, position + in_order.size))
        # The clips as every rank looks them up, rank by rank, put back into the global order.
        clips = [plan.clips(rank.ravel()).clip_id.reshape(rank.shape) for rank in given_out]
        seen.append(np.stack(clips).transpose(1, 0, 2).ravel())
        position += micro * world * accumulation * steps
        last_world = world
    seen = np.concatenate(seen)[: 3 * size]
    assert np.array_equal(seen, expected.clip_id)
    for epoch in range(3):
        ids, times = np.unique(seen[epoch * size : (epoch + 1) * size], return_counts=True)
        assert ids.size == size  # none missing
        assert times.max() == 1  # none repeated
