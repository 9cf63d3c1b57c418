"""Scheduled masks of several strategies and redundancy dropout: the same after a stop, and on any number of ranks."""

import math
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fmri_scale.checkpoint import consolidated_state, layout
from fmri_scale.models.strd import RATES
from fmri_scale.training.metrics import read_metrics
from sharding.cli import main
from sharding.format import GRID_AFFINE
from tests.helpers.spawn import run_ranks, start_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist

STEPS = 8
KEYS = ("step", "loss", "grad_norm", "masked_fraction", "masked_fraction_brain", *RATES)
SETTINGS = {
    "optim__steps": STEPS,
    "optim__micro_batch": 2,
    "mask__strategy": "mixture",
    "mask__mixture": {"region": 1.0, "group": 1.0},
    "mask__mixture_start": {"token": 1.0, "tube": 1.0},
    "mask__schedule_steps": 6,
    "mask__ratio": 0.6,
    "mask__ratio_start": 0.2,
    "mask__ratio_of": "brain",
    "mask__tube_len": 2,
    "model__strd": "paper",
    "loss__temporal_weight": 0.3,
    "loss__patch_norm": True,
    "loss__region_weights": {"right": 2.0},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A corpus, an atlas of four regions in two groups over its few voxels, and the run `unbroken` on one rank."""
    folder = tmp_path_factory.mktemp("masks")
    write_tiny_corpus(folder / "corpus")
    labels = np.zeros((96, 96, 96), dtype=np.uint8)
    for number, (x, y) in enumerate(((24, 24), (24, 48), (48, 24), (48, 48)), start=1):
        labels[x : x + 24, y : y + 24, 24:72] = number
    nib.save(nib.Nifti1Image(labels, GRID_AFFINE), folder / "labels.nii.gz")
    rows = "".join(f"{n}\tregion_{n}\t{'left' if n < 3 else 'right'}\n" for n in (1, 2, 3, 4))
    (folder / "labels.tsv").write_text("index\tname\tgroup\n" + rows)
    options = ["--labels", str(folder / "labels.tsv"), "--patch", "24", "--out", str(folder / "atlas")]
    assert main(["atlas", str(folder / "labels.nii.gz"), *options]) == 0
    ended = run_ranks(run(folder, "unbroken"), 1, folder)
    assert [process.code for process in ended] == [0], ended[0].err[-2000:]
    return folder


def run(folder: Path, name: str, **changes: object) -> list[str]:
    return arguments(folder / name, folder / "corpus", mask__atlas=str(folder / "atlas"), **SETTINGS, **changes)


def rows(run_dir: Path) -> list[list[float | None]]:
    return [[row.get(key) for key in KEYS] for row in read_metrics(run_dir)]


def test_share_of_the_brain_follows_the_schedule(home):
    shares = [row["masked_fraction_brain"] for row in read_metrics(home / "unbroken")]
    wanted = [0.2 + 0.4 * min(step / 6, 1) for step in range(STEPS)]
    tokens = 8 * 4  # that hold brain; a share is of whole ones, of tubes half of one
    assert all(abs(a - b) <= 1.0 / tokens + 1e-6 for a, b in zip(shares, wanted, strict=True)), shares
    assert all(0 < row["strd_drop_rate"] < 0.5 for row in read_metrics(home / "unbroken"))


def test_a_stopped_run_draws_the_same_masks_and_drops(home):
    again = run(home, "stopped", checkpoint__every_steps=1)
    job = start_ranks(again, 1, home)
    job.wait_until(lambda: bool(found := layout.committed(home / "stopped")) and found[0].step >= 2)
    os.kill(job.processes[0].pid, signal.SIGTERM)
    job.wait()
    assert [process.code for process in run_ranks(again, 1, home)] == [0]
    assert rows(home / "stopped") == rows(home / "unbroken")
    ours, wanted = consolidated_state(home / "stopped"), consolidated_state(home / "unbroken")
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_two_ranks_draw_the_same_masks(home):
    ended = run_ranks(run(home, "two"), 2, home)
    assert [process.code for process in ended] == [0, 0]
    for ours, wanted in zip(read_metrics(home / "two"), read_metrics(home / "unbroken"), strict=True):
        assert math.isclose(ours["loss"], wanted["loss"], rel_tol=1e-4)
        for key in ("masked_fraction", "masked_fraction_brain"):
            assert math.isclose(ours[key], wanted[key], rel_tol=1e-6)
        assert 0 < ours["strd_drop_rate"] < 0.5, "counted over other clips: the first of each forward pass"
