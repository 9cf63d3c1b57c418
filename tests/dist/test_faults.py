"""Two ranks meet bad input, a full disk and a changed configuration; all of them end alike, and say so once."""

import json
import math
import signal
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fmri_scale.checkpoint import consolidated_state, layout, newest
from fmri_scale.train import read_arguments
from fmri_scale.training import folder
from fmri_scale.training.folder import STATUS
from fmri_scale.training.metrics import read_metrics
from fmri_scale.training.signals import REQUEUE
from sharding.corpus import open_corpus
from tests.helpers.spawn import TRAINEE, run_ranks
from tests.helpers.tiny_run import write_run
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist

BAD = {"nan_volume": [1, 5, 5]}
"Rank 1 has two micro-batches a step: this is the first one of its step 3."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus) -> Path:
    """Runs on two ranks: `nan_0` and `nan_2` (ZeRO stage), the names of other faults, and `changed`, resumed so."""
    made = tmp_path_factory.mktemp("faults")
    other = write_tiny_corpus(tmp_path_factory.mktemp("other") / "corpus", frames=44)

    def job(name: str, faults: dict | None = None, **changes: object) -> dict:
        return {"arguments": arguments(made / name, corpus, **changes), "faults": faults or {}}

    saved = {"checkpoint__every_steps": 1, "checkpoint__keep_last": 9}
    jobs = [job(f"nan_{stage}", BAD, optim__steps=4, engine__zero_stage=stage, **saved) for stage in (0, 2)]
    jobs.append(job("gradient_0", {"nan_gradient": [1, 5]}, optim__steps=4, engine__zero_stage=0, **saved))
    jobs.append(job("gradient_2", {"nan_gradient": [0, 5]}, optim__steps=4, engine__zero_stage=2, **saved))
    spoilt = {"nan_parameter": [1, 3]}
    jobs += [job(f"weight_{k}", spoilt, optim__steps=9, engine__zero_stage=k) | {"cut_all": k == 3} for k in (1, 3)]
    jobs.append(job("weight_saved", spoilt, optim__steps=9, **saved))
    jobs.append(job("other_corpus", {"other_corpus": [1, str(other)]}, optim__steps=2))
    jobs.append(job("stops", {"nan_volume": [1, 3, 99]}, optim__steps=9, engine__max_bad_steps=3))
    jobs.append(job("full", {"full_disk": 1}, optim__steps=2, checkpoint__every_steps=1))
    for clip, decay, betas in ((1.0, 0.1, [0.9, 0.95]), (0.25, 0.3, [0.8, 0.9])):
        changes = {"optim__clip_grad": clip, "optim__weight_decay": decay, "optim__betas": betas}
        jobs.append(job("changed", optim__steps=1 if clip == 1.0 else 2, **changes))
    jobs.append(job("slow", {"slow": [1, 0.5]}, optim__steps=3, guard__hash_every=1, guard__straggler_ratio=1.5))
    jobs.append(job("flip", {"flip": [1, 3]}, optim__steps=5, engine__zero_stage=0, guard__hash_every=1))
    jobs.append(job("ends", {"ends_in": 124.0, "slow": [0, 0.2]}, optim__steps=500))
    jobs.append({**job("unlike", optim__steps=2), "arguments_of_rank_1": ["optim.lr=0.5", "seed=4"]})
    # of two ranks each has two micro-steps of training and two of validation at every step
    validated = {"optim__steps": 9, "log__validate_every": 1}
    jobs.append(job("told_first", {"told_at": [1, 1]}, **validated))
    jobs.append(job("told_validating", {"told_at": [1, 3]}, **validated))
    (made / "jobs.json").write_text(json.dumps(jobs))
    ended = run_ranks([str(made / "jobs.json")], 2, made, TRAINEE)
    assert [process.code for process in ended] == [0, 0]
    return made


def records(run_dir: Path) -> list[dict]:
    return [json.loads((run_dir / f"record_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("stage", [0, 2])
def test_nonfinite_input_skips_the_step(runs, corpus, stage):
    """One rank's NaN: no rank takes the step, it is counted, its clips are named, and the run goes on."""
    run = runs / f"nan_{stage}"
    rows = read_metrics(run)
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1]
    assert [row["loss"] is None for row in rows] == [False, False, True, False]
    weights = load_file(run / "live_0.safetensors")
    assert all(bool(torch.isfinite(w).all()) for w in weights.values())
    bad = [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in bad] == [3]
    losses = [[float(b["loss"]) for b in rank["micro_batches"]] for rank in bad[0]["ranks"]]
    assert [[math.isfinite(x) for x in rank] for rank in losses] == [[True, True], [False, True]]
    clips = bad[0]["ranks"][1]["micro_batches"][0]["clips"]
    assert clips[0].split("@")[0] in set(open_corpus(corpus).index["key"])


@pytest.mark.parametrize("stage", [0, 2])
def test_skipped_step_leaves_the_weights_as_they_were(runs, stage):
    one, two, three, four = (consolidated_state(layout.step_dir(runs / f"nan_{stage}", k)) for k in (1, 2, 3, 4))
    assert all(torch.equal(two[name], three[name]) for name in two)
    assert any(not torch.equal(one[name], two[name]) for name in two)
    assert any(not torch.equal(three[name], four[name]) for name in two)


@pytest.mark.parametrize("stage", [0, 2])
def test_nonfinite_gradient_under_a_finite_loss_skips_the_step(runs, stage):
    run = runs / f"gradient_{stage}"
    rows = read_metrics(run)
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1]
    assert all(row["loss"] for row in rows)
    two, three, four = (consolidated_state(layout.step_dir(run, k)) for k in (2, 3, 4))
    assert all(torch.equal(two[name], three[name]) for name in two)
    assert all(bool(torch.isfinite(four[name]).all()) for name in four)
    assert any(not torch.equal(three[name], four[name]) for name in two)
    assert "step 3 skipped" in (run / "logs" / "rank_0.log").read_text()


@pytest.mark.parametrize("name", ["weight_1", "weight_3", "weight_saved"])
def test_nonfinite_weight_stops_all_ranks_and_is_never_saved(runs, name):
    """It is found by the step that it spoils, or by the checkpoint that would keep it."""
    step = 3 if name == "weight_saved" else 4
    for record in records(runs / name):
        assert record["kind"] == "TrainingError"
        assert f"after step {step} weights of rank 1 ({socket.gethostname()}) are not finite (first in model." in (
            record["error"]
        )
    assert [c.step for c in layout.committed(runs / name)] == ([2, 1] if name == "weight_saved" else [])
    assert layout.leftovers(runs / name) == []


def test_run_stops_after_bad_steps_in_a_row(runs):
    for record in records(runs / "stops"):
        assert record["kind"] == "TrainingError"
        assert "3 steps in a row (up to step 4)" in record["error"]
    status = json.loads((runs / "stops" / STATUS).read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    assert len((runs / "stops" / "bad_steps.jsonl").read_text().splitlines()) == 3


def test_full_disk_stops_all_ranks(runs):
    """The rank that cannot write does not leave the other waiting; nothing half written stays."""
    for record in records(runs / "full"):
        assert record["kind"] == "CheckpointError"
        assert "rank 1: " in record["error"]
        assert "No space left on device" in record["error"]
    assert layout.committed(runs / "full") == layout.leftovers(runs / "full") == []


def test_changed_hyperparameters_take_effect_on_resume(runs):
    """DeepSpeed would go on with the norm, betas and decay that lie in the checkpoint."""
    for record in records(runs / "changed"):
        assert record["code"] == 0
        assert record["clip_grad"] == 0.25
        assert [group["weight_decay"] for group in record["groups"]] == [0.3, 0.0]
        assert all(group["betas"] == [0.8, 0.9] for group in record["groups"])
    assert newest(runs / "changed").step == 2
    log = (runs / "changed" / "logs" / "rank_0.log").read_text()
    assert "optim.clip_grad 1.0 -> 0.25" in log


def test_checkpoint_of_another_model_is_one_line_from_all_ranks(tmp_path, corpus):
    run = tmp_path / "run"
    write_run(run)
    ended = run_ranks(arguments(run, corpus, optim__steps=99), 2, tmp_path)
    assert [process.code for process in ended] == [2, 2]
    told = [line for process in ended for line in process.err.splitlines() if line.startswith("train: ")]
    assert len(told) == 1
    assert "model.patch_size [24, 24, 24, 1] -> [6, 6, 6, 1]" in told[0]
    assert all("Traceback" not in process.err for process in ended)
    assert newest(run).step == 30


def test_start_that_cannot_be_leaves_nothing_behind(tmp_path):
    (process,) = run_ranks(arguments(tmp_path / "runs" / "first", tmp_path / "absent"), 1, tmp_path)
    assert process.code == 2
    assert process.err.startswith(f"train: {tmp_path / 'absent'}: no such corpus")
    assert process.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_error_of_one_rank_ends_all_and_is_said_once(tmp_path, corpus):
    """A damaged frame is met by one rank only; the other learns why it was left alone."""
    damaged = write_tiny_corpus(tmp_path / "damaged")
    shard = next((damaged / "shards").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    run = tmp_path / "run"
    ended = run_ranks(arguments(run, damaged, optim__steps=40), 2, tmp_path)
    assert [process.code for process in ended] == [2, 2]
    told = [line for process in ended for line in process.err.splitlines() if line.startswith("train: ")]
    assert len(told) == 1
    assert shard.name in told[0]
    assert all("Traceback" not in process.err for process in ended)
    status = json.loads((run / STATUS).read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    assert shard.name in status["message"]


def test_slow_rank_is_named(runs):
    row = read_metrics(runs / "slow")[-1]
    assert row["slowest_rank"] == 1
    assert row["slowest_ratio"] > 1.5
    assert row["step_s"] > 1.0, "two micro-steps of half a second"
    log = (runs / "slow" / "logs" / "rank_0.log").read_text()
    assert f"rank 1 on {socket.gethostname()} needs" in log


def test_ranks_with_other_weights_stop_on_all(runs):
    """One bit of one weight of one rank."""
    for record in records(runs / "flip"):
        assert record["kind"] == "TrainingError"
        assert "after step 3 the weights of rank 1 (" in record["error"]
    assert read_metrics(runs / "slow")[-1]["step"] == 3, "equal weights were taken for different"


def test_run_stops_in_time_before_the_jobs_end(runs):
    for record in records(runs / "ends"):
        assert record["code"] == REQUEUE
    status = json.loads((runs / "ends" / STATUS).read_text())
    assert (status["state"], status["step"]) == ("requeue", newest(runs / "ends").step)
    assert 0 < status["step"] < 500


@pytest.mark.parametrize(("name", "step"), [("told_first", 1), ("told_validating", 2)])
def test_request_to_stop_is_met_in_the_first_step_and_in_validation(runs, name, step):
    """One rank is told: all save the same step; a validation that is going on is given up."""
    for record in records(runs / name):
        assert record["code"] == REQUEUE
    assert newest(runs / name).step == step
    assert json.loads((runs / name / STATUS).read_text())["step"] == step
    assert not any("val_loss" in row for row in read_metrics(runs / name))


def test_rank_with_another_configuration_stops_all(runs):
    for record in records(runs / "unlike"):
        assert record["kind"] == "LaunchError"
        assert "was started with seed=4, rank 0 with 0 and 1 more keys" in record["error"]
        assert record["error"].startswith("rank 1 on ")


def test_rank_with_another_corpus_stops_all(runs):
    """The configuration is the same; what lies at the corpus' place on one machine is not."""
    for record in records(runs / "other_corpus"):
        assert record["kind"] == "DataError"
        assert "ranks do not agree on the data's plan: rank 0 has " in record["error"]
    assert not (runs / "other_corpus" / "metrics.jsonl").exists()


def test_hanging_rank_ends_all_with_their_stacks(tmp_path, corpus):
    items = arguments(tmp_path / "run", corpus, optim__steps=9, guard__hang_s=8.0)
    (tmp_path / "jobs.json").write_text(json.dumps([{"arguments": items, "faults": {"hang": [1, 5]}}]))
    ended = run_ranks([str(tmp_path / "jobs.json")], 2, tmp_path, TRAINEE)
    assert [process.code for process in ended] == [1, 1]
    status = json.loads((tmp_path / "run" / STATUS).read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("failed", 2, 1)
    assert "stacks of all ranks are in" in status["message"]
    stacks = [(tmp_path / "run" / "logs" / f"stacks_rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert "in wait" in stacks[1]
    assert all("in train_step" in text for text in stacks)


def test_latest_waits_for_all_ranks(tmp_path, corpus):
    """DeepSpeed moves `latest` when rank 0 has written its own files; rank 1 is killed in the middle of one of its."""
    items = arguments(tmp_path / "run", corpus, optim__steps=4, checkpoint__every_steps=1)
    # ZeRO 1: rank 1 writes one file for each checkpoint
    (tmp_path / "jobs.json").write_text(json.dumps([{"arguments": items, "faults": {"die_in_save": [1, 2]}}]))
    ended = run_ranks([str(tmp_path / "jobs.json")], 2, tmp_path, TRAINEE)
    assert ended[1].code == -signal.SIGKILL
    assert ended[0].code > 0
    assert (layout.folder(tmp_path / "run") / layout.LATEST).read_text() == "step_00000001\n"
    (left,) = layout.leftovers(tmp_path / "run")
    assert (left / "engine" / "mp_rank_00_model_states.pt").is_file(), "rank 0 had written its part"
    assert newest(tmp_path / "run").step == 1
    assert folder.find_checkpoint(read_arguments(items)).step == 1
    assert layout.leftovers(tmp_path / "run") == []
