"""However a global batch is divided, the training is the same: ranks, accumulation, ZeRO stages, precision."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fmri_scale.checkpoint import consolidated_state
from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import TRAINEE, run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist

STAGES = (0, 1, 2, 3)
CODES = {
    "optim__steps": 10,
    "model__image_size": [96, 96, 96],
    "model__patch_size": [12, 12, 12, 1],
    "mask__strategy": "window",
    "log__validate_every": 5,
    "model__prompt_len": 2,
}
"What lets the model read codes: the image is the corpus' grid."


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs of 20 steps: `one` (one rank), `zero_K` (two), `bf16_K`, `offload_K` (two, 6 steps)."""
    folder = tmp_path_factory.mktemp("parity")
    corpus = write_tiny_corpus(folder / "corpus")

    def job(name: str, **changes: object) -> dict:
        return {"arguments": arguments(folder / name, corpus, **changes)}

    common = {"optim__steps": 20, "engine__timeout_s": 77.0, "log__validate_every": 6}
    two = [
        job(f"zero_{stage}", engine__zero_stage=stage, log__pictures_every=7 * (stage == 3), **common)
        for stage in STAGES
    ]
    two += [job(f"bf16_{stage}", engine__zero_stage=stage, optim__steps=6, engine__dtype="bf16") for stage in (0, 3)]
    offload = {"optim__steps": 6, "engine__offload_optimizer": "cpu"}
    two.append(job("offload_1", engine__zero_stage=1, **offload))
    two.append(job("offload_3", engine__zero_stage=3, engine__offload_parameters="cpu", **offload))
    two.append(job("codes_0", engine__zero_stage=0, **CODES))
    cut = [("codes_3", False), ("codes_3_recomputed", True)]
    two += [job(n, engine__zero_stage=3, model__checkpoint_blocks=r, **CODES) | {"cut_all": True} for n, r in cut]
    one = [job("one", optim__micro_batch=2, **common), job("codes_one", optim__micro_batch=2, **CODES)]
    for world_size, jobs in ((1, one), (2, two)):
        (folder / "jobs.json").write_text(json.dumps(jobs))
        ended = run_ranks([str(folder / "jobs.json")], world_size, folder, TRAINEE, timeout_s=500.0)
        assert [process.code for process in ended] == [0] * world_size
    return folder


def losses(run_dir: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in read_metrics(run_dir)], dtype=torch.float64)


@pytest.mark.parametrize("stage", STAGES)
def test_loss_curve_does_not_depend_on_ranks_or_zero_stage(runs, stage):
    reference, found = losses(runs / "one"), losses(runs / f"zero_{stage}")
    assert len(found) == len(reference) == 20
    assert reference[-1] < 0.6 * reference[0], "nothing was learnt, so nothing is compared"
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=0)
    norms = [[row["grad_norm"] for row in read_metrics(runs / name)] for name in ("one", f"zero_{stage}")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize("name", ["codes_0", "codes_3", "codes_3_recomputed"])
def test_training_on_codes_does_not_depend_on_ranks_zero_stage_or_recomputation(runs, name):
    """Through every operator of the kernels, with each weight that they take cut in two under ZeRO 3."""
    reference, found = (read_metrics(runs / run) for run in ("codes_one", name))
    for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3)):
        values = [row[key] for row in reference]
        assert len(values) == 10
        assert [row[key] for row in found] == pytest.approx(values, rel=tolerance)
    assert reference[-1]["loss"] < 0.97 * reference[0]["loss"], "nothing was learnt, so nothing is compared"
    validated = [[row["val_loss"] for row in rows if "val_loss" in row] for rows in (reference, found)]
    assert validated[1] == pytest.approx(validated[0], rel=1e-4)
    assert "reads codes" in (runs / name / "logs" / "rank_0.log").read_text()
    assert json.loads((runs / name / "record_0.json").read_text())["whole_parameters"] == 0


def test_the_small_image_is_read_as_volumes(runs):
    assert "reads volumes" in (runs / "zero_0" / "logs" / "rank_0.log").read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_validation_is_a_mean_over_the_same_clips(runs, stage):
    """Three clips, over one rank in batches of two and over two ranks in batches of one."""
    found, wanted = (
        {row["step"]: row["val_loss"] for row in read_metrics(runs / name) if "val_loss" in row}
        for name in (f"zero_{stage}", "one")
    )
    assert list(found) == [6, 12, 18]
    assert found == pytest.approx(wanted, rel=1e-4)
    assert found[18] < found[6]


@pytest.mark.parametrize("stage", STAGES)
def test_weights_are_put_together_without_an_engine(runs, stage):
    """What `consolidated_state` reads from the files is what the engine held, to the bit."""
    live = load_file(runs / f"zero_{stage}" / "live_0.safetensors")
    read = consolidated_state(runs / f"zero_{stage}")
    assert read.keys() == live.keys()
    assert all(torch.equal(read[name], live[name]) for name in live)
    reference = consolidated_state(runs / "one")
    assert all(torch.allclose(read[name], reference[name], rtol=1e-3, atol=1e-5) for name in live)


@pytest.mark.parametrize("stage", [0, 3])
def test_bf16_follows_fp32_and_keeps_parameters_and_gradients_in_fp32(runs, stage):
    """The first three steps warm up and have the same learning rate in both."""
    found = losses(runs / f"bf16_{stage}")
    assert not torch.equal(found[:3], losses(runs / "one")[:3]), "autocast was not active"
    torch.testing.assert_close(found[:3], losses(runs / "one")[:3], rtol=2e-2, atol=0)
    assert all(w.dtype == torch.float32 for w in load_file(runs / f"bf16_{stage}" / "live_0.safetensors").values())
    assert json.loads((runs / f"bf16_{stage}" / "record_0.json").read_text())["accumulation_dtype"] == "torch.float32"


@pytest.mark.parametrize("stage", [1, 3])
def test_offloading_changes_nothing_and_is_saved(runs, stage):
    run = runs / f"offload_{stage}"
    torch.testing.assert_close(losses(run)[:3], losses(runs / f"zero_{stage}")[:3], rtol=1e-6, atol=0)
    live, read = load_file(run / "live_0.safetensors"), consolidated_state(run)
    assert all(torch.equal(read[name], live[name]) for name in live)


def test_timeout_reaches_all_groups(runs):
    """DeepSpeed makes groups of its own, which would wait 30 minutes for a dead peer."""
    for stage in STAGES:
        for rank in (0, 1):
            timeouts = json.loads((runs / f"zero_{stage}" / f"record_{rank}.json").read_text())["timeouts_s"]
            assert len(timeouts) >= 2
            assert set(timeouts) == {77.0}


def test_no_compiler_is_needed(runs):
    """One rank and two: DeepSpeed's C++ extension for CPU ranks is not built (compilers are /bin/false here)."""
    extensions = runs / "torch_extensions"
    assert not extensions.exists() or not list(extensions.rglob("*"))


def test_every_rank_logs_and_the_picture_is_drawn(runs):
    run = runs / "zero_3"
    assert (run / "logs" / "rank_1.log").is_file()
    for picture in ("reconstruction_00000014.png", "reconstruction_00000020.png", "loss.png"):
        assert (run / "pictures" / picture).read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "status.json").read_text())["state"] == "done"
