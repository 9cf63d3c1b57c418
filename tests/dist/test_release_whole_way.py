"""Train, export, verify, push, pull, embed, continue: the same numbers all the way, with the real commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fmri_scale
from fmri_scale import cli
from fmri_scale.checkpoint import consolidated_state
from fmri_scale.errors import CheckpointError
from fmri_scale.release import layout
from tests.helpers import hub_server

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.dist
ROOT = Path(__file__).parents[2]
NAME = "my-lab/tiny"
MODEL = ("model.patch_size=[24,24,24,1]", "model.num_frames=6", "model.embed_dim=8", "model.depths=[1,1]")
QUICK = ("optim.global_batch=1", "optim.warmup_steps=2", "optim.lr=1e-3", "log.every_steps=1", "log.wandb=off")


def train(folder: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "fmri_scale.train", f"data.corpus={folder / 'corpus'}", *QUICK, *overrides]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A cohort, its corpus, and a run of 30 steps."""
    from sharding.cli import main

    folder = tmp_path_factory.mktemp("way")
    assert main(["phantom", str(folder / "cohort"), "--subjects", "2", "--volumes", "24", "--voxel-mm", "4"]) == 0
    build = ["build", str(folder / "cohort"), "--out", str(folder / "corpus"), "--min-frames", "6"]
    assert main([*build, "--splits", "1,0,0", "--licence", "CC0"]) == 0
    train(folder, f"run_dir={folder / 'run'}", "optim.steps=30", *MODEL)
    return folder


def test_the_whole_way_changes_no_number(folder, tmp_path, monkeypatch):
    release = tmp_path / "release"
    assert cli.main(["export", str(folder / "run"), "--out", str(release), "--name", NAME]) == 0
    assert cli.main(["verify-release", str(release)]) == 0
    local = fmri_scale.from_pretrained(release)
    for name, value in consolidated_state(folder / "run").items():
        assert torch.equal(local.model.state_dict()[name], value)
    record = local.record
    assert record["steps"] == 30
    assert len(record["loss_curve"]) == 30
    assert record["data"]["datasets"]["cohort"]["runs"] == 2
    assert record["throughput"]["frames_per_s_median"] > 0

    inputs = [str(folder / "cohort")]
    assert cli.main(["features", str(release), *inputs, "--out", str(tmp_path / "a.npz"), "--device", "cpu"]) == 0
    with hub_server.serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        assert cli.main(["push", str(release), NAME, "--tag", "v1"]) == 0
        pulled = ["features", NAME, *inputs, "--revision", "v1", "--out", str(tmp_path / "b.npz"), "--device", "cpu"]
        assert cli.main(pulled) == 0
    with np.load(tmp_path / "a.npz") as here, np.load(tmp_path / "b.npz") as there:
        assert here.files == there.files
        for name in here.files:
            assert np.array_equal(here[name], there[name]), name
        assert np.abs(here["clip_features"]).max() > 0

    for path in release.iterdir():
        copy = Path(shutil.copytree(release, tmp_path / "copy"))
        spoilt = bytearray(path.read_bytes())
        spoilt[len(spoilt) // 3] ^= 1
        (copy / path.name).write_bytes(spoilt)
        with pytest.raises(CheckpointError):
            fmri_scale.from_pretrained(copy)
        shutil.rmtree(copy)


def test_training_continues_from_a_release_on_other_clips_and_patches(folder, tmp_path):
    assert cli.main(["export", str(folder / "run"), "--out", str(tmp_path / "release")]) == 0
    start = (f"start_from={tmp_path / 'release'}", f"run_dir={tmp_path / 'run'}", "optim.steps=2")
    train(folder, *start, "model.num_frames=8", "model.patch_size=[12,12,12,1]")
    released = fmri_scale.from_pretrained(tmp_path / "release")
    began = json.loads((tmp_path / "run" / "start.json").read_text())
    assert began["release"] == released.identity
    assert "backbone.patch_embed.weight" in began["fitted"]
    assert began["new"] == []
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "second")]) == 0
    second = fmri_scale.from_pretrained(tmp_path / "second")
    assert second.record["started_from"] == {"source": "release", "release": released.identity, "new": []}
    assert second.config.patch_size == [12, 12, 12, 1]
    before, after = (model.model.state_dict()["decoder.norm.weight"] for model in (released, second))
    moved = (after - before).abs().max()
    assert 0 < moved < 0.01
    assert released.identity[:12] in (tmp_path / "second" / layout.CARD).read_text()
