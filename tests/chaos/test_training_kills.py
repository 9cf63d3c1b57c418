"""Killed at random moments, inside the writing of checkpoints too, a run ends as if nothing had happened: to the bit.

FMRI_SCALE_KILLS=20 python -m pytest -s tests/chaos/test_training_kills.py     twenty moments instead of two
"""

import os
import random
from pathlib import Path

import pytest
import torch

from fmri_scale.checkpoint import consolidated_state, newest, read_state
from fmri_scale.checkpoint.reading import load_tensors
from fmri_scale.training.metrics import read_metrics
from tests.helpers.killing import Launch, draw_moments
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist

MOMENTS = int(os.environ.get("FMRI_SCALE_KILLS", "2"))
STEPS = 80 + 12 * MOMENTS
"So many that a run whose launcher is killed is not through before it is told to stop."
END_S = 120.0
"Seconds after which nothing may be left: --grace, what the supervisor waits for stragglers, and a slow machine."
KEPT = ("step", "loss", "lr", "grad_norm", "masked_fraction", "clips", "clip_hash", "epoch")


def train(run_dir: Path, corpus: Path, folder: Path, **changes: object) -> Launch:
    folder.mkdir(exist_ok=True)
    return Launch(arguments(run_dir, corpus, optim__steps=STEPS, optim__ema_decay=0.9, **changes), run_dir, folder)


def optimizer_states(run_dir: Path) -> list[torch.Tensor]:
    names = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
    states = [load_tensors(newest(run_dir).engine / name)["optimizer_state_dict"] for name in names]
    moments = [state["base_optimizer_state"]["state"] for state in states]
    return [slot[key] for rank in moments for slot in rank.values() for key in sorted(slot)]


def assert_same_end(run_dir: Path, unbroken: Path) -> None:
    for averaged in (False, True):
        found, wanted = (consolidated_state(folder, averaged=averaged) for folder in (run_dir, unbroken))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(torch.equal(a, b) for a, b in zip(*map(optimizer_states, (run_dir, unbroken)), strict=True))
    rows, wanted_rows = read_metrics(run_dir), read_metrics(unbroken)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [[row[k] for k in KEPT] for row in rows] == [[row[k] for k in KEPT] for row in wanted_rows]
    data = [read_state(newest(folder).path).data for folder in (run_dir, unbroken)]
    assert data[0] == data[1]


def test_killed_at_random_moments_a_run_ends_as_the_unbroken_one(tmp_path):
    """One rank, everything at once, the launcher, the supervisor; no process stays, no success is reported."""
    corpus = write_tiny_corpus(tmp_path / "corpus")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    whole = train(unbroken, corpus, tmp_path / "one")
    assert whole.wait() == 0, whole.text()

    seed = random.randrange(1000)
    print(f"\nrandom moments of seed {seed}")
    for number, moment in enumerate(draw_moments(MOMENTS, random.Random(seed)), 1):
        launch = train(broken, corpus, tmp_path / "many", checkpoint__every_steps=1)
        try:
            writing = launch.kill(moment)
            code, gone_s = launch.wait(END_S), launch.wait_for_none(END_S)
        finally:
            launch.close()
        assert code != 0, launch.text()
        step = newest(broken).step  # by its checksums
        print(
            f"{number}: {moment}, while writing: {writing}, exit code {code}, none left after {gone_s:.1f} s, {step=}"
        )
    final = train(broken, corpus, tmp_path / "many", checkpoint__every_steps=1)
    assert final.wait() == 0, final.text()
    assert_same_end(broken, unbroken)
