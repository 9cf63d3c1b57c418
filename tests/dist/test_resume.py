"""Killed, stopped and started again, a run ends as if nothing had happened: to the bit, on one rank and on two."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from fmri_scale.checkpoint import consolidated_state, layout, newest, read_state
from fmri_scale.checkpoint.reading import load_tensors
from fmri_scale.training.folder import STATUS
from fmri_scale.training.metrics import read_metrics
from fmri_scale.training.signals import REQUEUE
from tests.helpers.spawn import run_ranks, start_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist

STEPS = 16
UNTIMED = ("step", "loss", "lr", "grad_norm", "masked_fraction", "masked_fraction_brain", "clips", "epoch")


def last_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint's name, 0 without any."""
    found = layout.committed(run_dir)
    return found[0].step if found else 0


def optimizer_states(run_dir: Path, world_size: int) -> list:
    names = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(world_size)]
    states = [load_tensors(newest(run_dir).engine / name)["optimizer_state_dict"] for name in names]
    moments = [state["base_optimizer_state"]["state"] for state in states]
    return [slot[key] for rank in moments for slot in rank.values() for key in sorted(slot)]


def assert_same_end(run_dir: Path, unbroken: Path, world_size: int) -> None:
    found, wanted = consolidated_state(run_dir), consolidated_state(unbroken)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    averages = [consolidated_state(folder, averaged=True) for folder in (run_dir, unbroken)]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in wanted)
    pairs = zip(optimizer_states(run_dir, world_size), optimizer_states(unbroken, world_size), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    rows, wanted_rows = read_metrics(run_dir), read_metrics(unbroken)
    assert [[r[k] for k in UNTIMED] for r in rows] == [[r[k] for k in UNTIMED] for r in wanted_rows]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    data = [read_state(newest(folder).path).data for folder in (run_dir, unbroken)]
    assert data[0] == data[1]  # position and the hash of all clips consumed
    rng = [newest(folder).rng(world_size - 1).read_text() for folder in (run_dir, unbroken)]
    assert rng[0] == rng[1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_and_stopped_run_ends_with_the_same_weights(tmp_path, world_size):
    """SIGKILL to one rank at a random moment (checkpoints are written all the time), later SIGTERM to one rank."""
    corpus = write_tiny_corpus(tmp_path / "corpus")
    common = {"optim__steps": STEPS, "checkpoint__keep_last": 2, "optim__ema_decay": 0.99}
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    ended = run_ranks(arguments(unbroken, corpus, **common), world_size, tmp_path)
    assert [process.code for process in ended] == [0] * world_size

    again = arguments(broken, corpus, **common, checkpoint__every_steps=1)
    seed = random.randrange(1000)
    print(f"random moments of seed {seed}")
    draw = random.Random(seed)
    goal = draw.randint(1, 5)
    job = start_ranks(again, world_size, tmp_path)
    job.wait_until(lambda: last_step(broken) >= goal)
    time.sleep(draw.uniform(0, 0.4))
    victim = draw.randrange(world_size)
    job.processes[victim].kill()
    ended = job.wait()
    assert [process.code for process in ended] == [-signal.SIGKILL if r == victim else 1 for r in range(world_size)]
    assert all(p.err.count("train: lost another rank (") == 1 for r, p in enumerate(ended) if r != victim)

    job = start_ranks(again, world_size, tmp_path)
    resumed = last_step(broken)
    job.wait_until(lambda: last_step(broken) >= resumed + 2)
    os.kill(job.processes[-1].pid, signal.SIGTERM)
    assert [process.code for process in job.wait()] == [REQUEUE] * world_size
    status = (broken / STATUS).read_text()
    assert '"requeue"' in status
    assert f'"step": {last_step(broken)}' in status
    assert last_step(broken) < STEPS

    ended = run_ranks(again, world_size, tmp_path)
    assert [process.code for process in ended] == [0] * world_size
    assert_same_end(broken, unbroken, world_size)
    assert layout.leftovers(broken) == []
    assert len(layout.committed(broken)) == 2
