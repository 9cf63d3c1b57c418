"""A run begun again from a checkpoint in its middle is the unbroken run to the bit, at every ZeRO stage."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import TRAINEE, run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist

STAGES = (0, 1, 2, 3)
STEPS, SAVED = 7, 4
COMPARED = ("step", "loss", "grad_norm", "lr", "clip_hash", "masked_fraction", "val_loss", "loss_spikes")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs: `once_K` (ZeRO K), and `again_K`, its copy without the last checkpoint, begun again."""
    folder = tmp_path_factory.mktemp("stages")
    corpus = write_tiny_corpus(folder / "corpus")
    common = {"optim__steps": STEPS, "checkpoint__every_steps": SAVED, "log__validate_every": 3}
    jobs = []
    for stage in STAGES:
        once, again = (
            arguments(folder / f"{name}_{stage}", corpus, engine__zero_stage=stage, **common)
            for name in ("once", "again")
        )
        jobs.append({"arguments": once, "copies": [str(folder / f"again_{stage}")]})
        jobs.append({"arguments": again, "faults": {"forget": STEPS}})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    ended = run_ranks([str(folder / "jobs.json")], 2, folder, TRAINEE)
    assert [process.code for process in ended] == [0, 0]
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bit_exact_at_every_zero_stage(runs, stage):
    once, again = (read_metrics(runs / f"{name}_{stage}") for name in ("once", "again"))
    assert [row["step"] for row in again] == list(range(1, STEPS + 1))
    assert [[row.get(key) for key in COMPARED] for row in again] == [[row.get(key) for key in COMPARED] for row in once]
    made_again = [a["step_s"] != b["step_s"] for a, b in zip(once, again, strict=True)]
    assert made_again == [False] * SAVED + [True] * (STEPS - SAVED)
    for rank in (0, 1):
        live = [load_file(runs / f"{name}_{stage}" / f"live_{rank}.safetensors") for name in ("once", "again")]
        assert all(torch.equal(live[0][name], live[1][name]) for name in live[0])
