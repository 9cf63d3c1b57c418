"""The small rules of training: the rate, the split of the batch, bad steps, signals, random numbers, the folder."""

import itertools
import json
import math
import os
import random
import signal

import numpy as np
import pytest
import torch

from fmri_scale.config import Config, OptimConfig
from fmri_scale.errors import CheckpointError, ConfigError, LaunchError, TrainingError
from fmri_scale.training import build, folder, rng
from fmri_scale.training.ds_config import MOST_BUCKET, accumulation, deepspeed_config
from fmri_scale.training.guards import BadSteps, poison
from fmri_scale.training.schedule import learning_rate
from fmri_scale.training.signals import INTERRUPTED, REQUEUE, StopRequest, exit_code
from tests.helpers.tiny_run import tiny_config, write_run


def test_rate_warms_up_then_falls_to_the_floor():
    optim = OptimConfig(steps=100, warmup_steps=10, lr=1.0, min_lr_ratio=0.1)
    rates = [learning_rate(step, optim) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(500, optim) == pytest.approx(0.1)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 50), (2, 1)])
def test_rate_of_short_runs_is_finite_and_positive(steps, warmup):
    optim = OptimConfig(steps=steps, warmup_steps=warmup, lr=1.0, min_lr_ratio=0.0)
    rates = [learning_rate(step, optim) for step in range(steps)]
    assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0


def test_global_batch_is_split_evenly_or_refused():
    assert accumulation(12, 2, 3) == 2
    assert accumulation(8, 8, 1) == 1
    with pytest.raises(ConfigError, match=r"times 2 ranks: choose optim\.micro_batch from 1, 2, 3, 6"):
        accumulation(12, 4, 2)
    with pytest.raises(ConfigError, match=r"choose optim\.global_batch as a multiple of 5"):
        accumulation(8, 1, 5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_deepspeed_reduces_and_accumulates_in_fp32(stage, dtype):
    config = Config()
    config.engine.zero_stage, config.engine.dtype = stage, dtype
    derived = deepspeed_config(config, world_size=4)
    assert derived["communication_data_type"] == derived["data_types"]["grad_accum_dtype"] == "fp32"
    assert "bf16" not in derived, "DeepSpeed's bf16 mode keeps the parameters in bf16"
    assert derived["zero_optimization"]["reduce_bucket_size"] < MOST_BUCKET
    assert derived["gradient_clipping"] == (config.optim.clip_grad if stage else 0.0)
    batch = derived["train_micro_batch_size_per_gpu"] * derived["gradient_accumulation_steps"] * 4
    assert batch == derived["train_batch_size"] == config.optim.global_batch


def gradient_of(value: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor(1.5, requires_grad=True)
    loss = 2.0 * x + value
    poisoned = poison(loss)
    poisoned.backward()
    return poisoned.detach(), x.grad


def test_infinite_loss_spoils_its_finite_gradient():
    loss, gradient = gradient_of(0.25)
    assert (loss.item(), gradient.item()) == (3.25, 2.0)
    for value in (math.inf, -math.inf, math.nan):
        assert math.isnan(gradient_of(value)[1].item())


def test_bad_steps_are_written_down_and_end_the_run(tmp_path):
    bad = BadSteps(tmp_path, limit=2)
    ranks = [{"micro_batches": [{"loss": "nan", "clips": ["a@3", "b@0"]}, {"loss": "0.5", "clips": ["c@1"]}]}]
    bad.bad(7, math.inf, ranks, writes=True)
    bad.good()
    bad.bad(9, math.inf, ranks, writes=True)
    with pytest.raises(TrainingError, match=r"2 steps in a row \(up to step 10\)"):
        bad.bad(10, math.nan, ranks, writes=True)
    rows = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [7, 9, 10]
    assert rows[0]["ranks"] == ranks
    assert BadSteps(tmp_path, 2, **bad.state()).total == 3


def test_signals_are_remembered_and_handlers_put_back():
    before = signal.getsignal(signal.SIGUSR1)
    stop = StopRequest().listen()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGUSR1
    finally:
        stop.release()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_second_interrupt_stops_at_once():
    stop = StopRequest().listen()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.release()


def test_exit_code_asks_for_a_requeue_where_any_rank_was_told_to_stop():
    assert exit_code([0, signal.SIGTERM]) == exit_code([signal.SIGUSR1, signal.SIGINT]) == REQUEUE == 75
    assert exit_code([0, signal.SIGINT]) == INTERRUPTED == 130


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(())), float(np.random.randn())]


def test_random_numbers_go_on_where_they_were(tmp_path):
    rng.seed(3, rank=1, deterministic=False)
    draws()
    (tmp_path / "rng.json").write_text(json.dumps(rng.capture()))
    wanted = [draws(), draws()]
    rng.seed(4, rank=0, deterministic=False)
    rng.restore(tmp_path / "rng.json")
    assert [draws(), draws()] == wanted


def test_ranks_draw_different_numbers():
    rng.seed(3, rank=0, deterministic=False)
    first = draws()
    rng.seed(3, rank=1, deterministic=False)
    assert not set(first) & set(draws())


def test_damaged_random_state_is_named(tmp_path):
    (tmp_path / "rng.json").write_text('{"python": [3]}')
    with pytest.raises(CheckpointError, match=r"rng\.json: not the state of random number generators"):
        rng.restore(tmp_path / "rng.json")


def test_one_run_at_a_time_in_a_folder(tmp_path):
    lock = folder.take(tmp_path)
    with pytest.raises(LaunchError, match=rf"process {os.getpid()} on .* trains in this folder"):
        folder.take(tmp_path)
    lock.close()
    folder.take(tmp_path).close()


def test_folder_that_cannot_be_made_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        folder.take(tmp_path / "file" / "run")


def test_resume_finds_the_newest_or_refuses(tmp_path):
    config = Config(run_dir=str(tmp_path / "run"))
    assert folder.find_checkpoint(config) is None
    write_run(tmp_path / "run", step=3)
    (tmp_path / "run" / "checkpoints" / "step_00000009.tmp").mkdir()
    found = folder.find_checkpoint(config)
    assert found is not None
    assert found.step == 3
    assert not (tmp_path / "run" / "checkpoints" / "step_00000009.tmp").exists()
    config.checkpoint.resume = "never"
    with pytest.raises(CheckpointError, match=r"up to step 3; choose a new run_dir or checkpoint\.resume=auto"):
        folder.find_checkpoint(config)


def test_what_sharding_would_lose_is_refused():
    """DeepSpeed restores neither buffers nor frozen parameters from every checkpoint."""
    model = build.build_model(tiny_config())
    model.backbone.register_buffer("passing", torch.zeros(1), persistent=False)
    build._refuse_what_sharding_loses(model)
    model.backbone.register_buffer("lasting", torch.zeros(1))
    with pytest.raises(AssertionError, match=r"backbone\.lasting"):
        build._refuse_what_sharding_loses(model)
    frozen = build.build_model(tiny_config())
    next(frozen.parameters()).requires_grad_(False)
    with pytest.raises(AssertionError, match="frozen"):
        build._refuse_what_sharding_loses(frozen)
