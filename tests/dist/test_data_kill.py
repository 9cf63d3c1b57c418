"""Whatever happens to ranks, every clip is seen once; what cannot go on stops on all of them with one reason."""

import json
import random
import sys

import numpy as np
import pytest

from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream
from fmri_scale.data.plan import Clips
from fmri_scale.data.state import clip_sum
from sharding.corpus import open_corpus
from tests.helpers.consumer import GLOBAL_BATCH
from tests.helpers.corpora import Segment, write_corpus
from tests.helpers.spawn import Job, environment

STEPS = 4000
PROGRAM = [sys.executable, "-m", "tests.helpers.consumer"]


def start(corpus, out, world, micro, steps, **settings):
    env = environment(out, WORLD_SIZE=str(world), PHASE=str(world), SETTINGS=json.dumps(settings))
    command = [*PROGRAM, str(corpus), str(out), str(steps), str(micro)]
    return Job([command] * world, [{**env, "RANK": str(r)} for r in range(world)], out / "output")


def position_of(out):
    return json.loads((out / "state.json").read_text())["position"] if (out / "state.json").exists() else 0


def logged(out, world, begin, end):
    """Clips that the ranks of a phase wrote down, of positions in [begin, end): position, epoch, clip id."""
    rows = []
    for rank in range(world):
        lines = (out / f"clips_{world}_{rank}.txt").read_text().splitlines(keepends=True)
        rows += [tuple(map(int, line.split())) for line in lines if line.endswith("\n")]
    return [row for row in rows if begin <= row[0] < end]


@pytest.mark.dist
def test_killed_on_four_ranks_then_two_then_three_the_clips_are_those_of_an_unbroken_run(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [Segment(n) for n in (128, 40, 25, 60, 19, 100, 20)] * 3)
    out, rng = tmp_path / "run", random.Random()
    out.mkdir()
    rows, begin = [], 0
    for world, micro in ((4, 3), (2, 4)):
        job = start(corpus, out, world, micro, STEPS)
        target = begin + GLOBAL_BATCH * rng.randint(3, 30)
        job.wait_until(lambda target=target: position_of(out) >= target)
        job.kill()  # SIGKILL to every rank and its readers
        assert all(process.code == -9 for process in job.wait())
        end = position_of(out)
        assert begin < end < STEPS * GLOBAL_BATCH
        rows += logged(out, world, begin, end)
        begin = end
    steps = begin // GLOBAL_BATCH + 20
    assert [process.code for process in start(corpus, out, 3, 2, steps).wait()] == [0, 0, 0]
    rows += logged(out, 3, begin, steps * GLOBAL_BATCH)

    unbroken = ClipStream(open_corpus(corpus), DataConfig(), 20, GLOBAL_BATCH, 1, seed=11)
    unbroken.advance(steps * GLOBAL_BATCH)
    rows.sort()
    positions, epochs, clip_ids = (np.array(column) for column in zip(*rows, strict=True))
    assert np.array_equal(positions, np.arange(steps * GLOBAL_BATCH))  # each once
    empty = np.zeros_like(positions)
    seen = clip_sum(positions, Clips(epochs, empty, empty, clip_ids))
    assert seen == unbroken.clip_hash == json.loads((out / "done.json").read_text())["clip_hash"]


@pytest.mark.dist
def test_too_many_bad_clips_stop_all_ranks_with_one_list(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [Segment(n) for n in (128, 40, 25, 60, 19, 100, 20)])
    (corpus / "shards" / "phantom-000001.tar").write_bytes(
        bytes((corpus / "shards" / "phantom-000001.tar").stat().st_size)
    )
    out = tmp_path / "run"
    out.mkdir()
    job = start(corpus, out, 2, 3, STEPS, on_bad_sample="substitute", retries=0, max_bad_clips=5)
    one, other = job.wait()
    assert (one.code, other.code) == (2, 2)
    assert one.out == other.out
    assert "clips could not be read, more than data.max_bad_fraction" in one.out
    assert "phantom-000001.tar: phantom__sub-0000" in one.out
    assert position_of(out) == 0  # found at the first comparison, so no state was saved with them
