"""A metric over validation clips is the mean over exactly those clips, on any number of real ranks."""

import os
import sys

import pytest
import torch.distributed as dist

from fmri_scale.config import DataConfig
from fmri_scale.data import validation_clips, weighted_mean
from sharding.corpus import open_corpus
from tests.helpers.corpora import Segment, write_corpus
from tests.helpers.spawn import Job, environment

PROGRAM = [sys.executable, "-m", "tests.dist.test_data_validation"]


def measure(corpus, rank, world):
    """Return the mean of a metric that differs from clip to clip, and the batches of this rank."""
    total = count = batches = 0
    for batch in validation_clips(open_corpus(corpus), DataConfig(), 20, 2, rank, world):
        metric = batch.codes.double().mean((1, 2))
        total += float((metric * batch.valid).sum())
        count += int(batch.valid.sum())
        batches += 1
    return weighted_mean(total, count), batches


@pytest.mark.dist
def test_validation_on_three_ranks_is_that_of_one(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [Segment(n, split="val") for n in (128, 50, 33)])
    alone, batches = measure(corpus, 0, 1)
    assert batches == 5  # nine clips, the last batch of one: three ranks have two batches each, one of them for show
    env = environment(tmp_path, WORLD_SIZE="3")
    ranks = [{**env, "RANK": str(rank)} for rank in range(3)]
    ended = Job([[*PROGRAM, str(corpus), str(tmp_path / "store")]] * 3, ranks, tmp_path / "output").wait()
    assert [process.code for process in ended] == [0, 0, 0]
    values = [process.out.split() for process in ended]
    assert [float(value) for value, _ in values] == pytest.approx([alone] * 3, rel=1e-12)
    assert [int(batches) for _, batches in values] == [2, 2, 2]


if __name__ == "__main__":
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], size), rank=number, world_size=size)
    print(*measure(sys.argv[1], number, size))
    dist.destroy_process_group()
