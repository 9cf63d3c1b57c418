"""What `fmri-scale estimate` predicts, against arithmetic by hand, a real plan, and real runs."""

import json
from dataclasses import replace

import pytest

from fmri_scale.cli import main
from fmri_scale.config import load_config
from fmri_scale.data import ClipStream, open_corpora
from fmri_scale.errors import ConfigError
from fmri_scale.models import cost
from fmri_scale.training.estimate import (
    checkpoint_bytes,
    communication,
    devices,
    estimate,
    job,
    memory,
    patches,
    speed,
)
from tests.helpers.tiny_training import arguments, write_tiny_corpus

H100 = devices.GPUS["h100"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny corpus."""
    return write_tiny_corpus(tmp_path_factory.mktemp("estimate") / "corpus")


def base(*overrides):
    return load_config(["configs/model/base.yaml"], ["optim.global_batch=64", *overrides])


def test_bytes_between_ranks_are_those_of_ring_collectives():
    u, n = 8.0, 4
    half = u * 3 / 4
    assert communication.bytes_sent(u, 0, n, micro_steps=5) == 2 * half  # one all-reduce
    assert communication.bytes_sent(u, 1, n, micro_steps=5) == 2 * half  # reduce-scatter, all-gather
    assert communication.bytes_sent(u, 2, n, micro_steps=5) == 6 * half  # reduced in every micro-step
    assert communication.bytes_sent(u, 3, n, micro_steps=5) == 15 * half  # gathered twice, reduced once in each
    assert all(communication.bytes_sent(u, stage, 1, 5) == 0 for stage in range(4))


def test_scan_elements_agree_with_the_cost_of_the_model():
    """The difference of two costs in the number of states is the scan's and the projections' alone."""
    model = base().model
    tokens = speed.scan_elements(model) // (model.expand * model.state_dim)
    blocks = {36: 4 * 81920, 72: 4 * 10240, 144: 12 * 1280, 288: 2 * 160}  # tokens of all blocks, by width
    assert tokens == sum(width * count for width, count in blocks.items())


def test_brain_tokens_save_what_is_not_computed():
    many = "optim.micro_batch=16"  # fewer clips wait for the host to start kernels
    whole, brain = base(many), base(many, "model.brain_tokens=true", "mask.ratio_of=brain")
    assert patches.computed_patches(whole.model) is None
    assert patches.computed_patches(brain.model) == [1692, 281, 58, 8]
    every, some = (estimate(config, 1, 1, H100) for config in (whole, brain))
    assert some.tokens_per_step == every.tokens_per_step * 1692 // 4096
    assert 0.4 < some.step_flops / every.step_flops < 0.6
    assert some.compute_s < 0.7 * every.compute_s
    assert some.memory.activations < 0.6 * every.memory.activations
    assert some.parameters == every.parameters


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_sharding_saves_memory_with_more_ranks(kind):
    peaks = {}
    for stage in (0, 1, 2, 3):
        config = load_config(["configs/model/xl.yaml"], [f"engine.zero_stage={stage}"])
        alone, many = (memory.memory(config, n, kind) for n in (1, 64))
        assert many.peak <= alone.peak
        assert many.parameters == (alone.parameters / 64 if stage == 3 else alone.parameters)
        assert many.optimizer == (alone.optimizer / 64 if stage else alone.optimizer)
        peaks[stage] = many.parameters + many.optimizer
    assert peaks[0] > peaks[1] == peaks[2] > peaks[3]


def test_recomputed_blocks_keep_less_but_at_least_one_block():
    plain, recomputed = base(), base("model.checkpoint_blocks=true")
    assert memory.activations(recomputed) < memory.activations(plain)
    assert memory.activations(recomputed) > 4 * cost(recomputed.model).total.kept_values


def test_views_for_contrast_are_counted():
    plain = ["augment.noise_sd=0.1", "optim.micro_batch=2"]
    both, alone = ["objective.instance=1", "objective.local=1"], ["objective.instance=1", "objective.reconstruction=0"]
    encoder, volume = 8 * cost(base().model, from_codes=False).encoder.kept_values, 8 * 96**3 * 20
    assert memory.activations(base(*plain, *alone)) == 2 * encoder + 2 * volume
    assert memory.activations(base(*plain, *both)) == memory.activations(base(*plain)) + 4 * encoder + 3 * volume
    assert job.bytes_of_clip(base(*plain, *both), 1000) == job.bytes_of_clip(base(*plain), 1000) + 20 * 1008


def test_time_grows_with_the_batch_and_not_with_ranks():
    one = speed.compute_seconds(base("optim.micro_batch=8"), H100, 8)
    assert speed.compute_seconds(base("optim.micro_batch=8", "optim.global_batch=128"), H100, 8) == pytest.approx(
        2 * one, rel=0.02
    )
    assert speed.compute_seconds(base("optim.micro_batch=8", "optim.global_batch=128"), H100, 16) == pytest.approx(
        one, rel=0.02
    )
    slow = replace(H100, launch_s=1.0)
    assert speed.compute_seconds(base("optim.micro_batch=8"), slow, 8) > 1000  # bound by the host


def test_epoch_is_that_of_the_stream(corpus, tmp_path):
    config = load_config([], arguments(tmp_path, corpus))
    corpora, optim, model = open_corpora(config.data), config.optim, config.model
    stream = ClipStream(
        corpora, config.data, model.num_frames, optim.global_batch, optim.micro_batch, 0, 1, config.seed
    )
    made = estimate(config, nodes=1, ranks_per_node=2, device=H100)
    assert made.clips_per_epoch == sum(row["clips_per_epoch"] for row in stream.plan.report())
    stream.close()
    assert made.epochs == pytest.approx(optim.steps * optim.global_batch / made.clips_per_epoch)
    assert made.clip_bytes == 4 * (4000 + 8) + 4 * 4000


def test_command_prints_what_it_computed(capsys):
    words = ["estimate", "configs/model/base.yaml", "--nodes", "2", "--gpus", "8", "--gpu", "h100"]
    assert main([*words, "optim.global_batch=64", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["parameters"] == cost(base().model).total.parameters
    assert numbers["micro_steps"] == 4
    assert main([*words, "optim.global_batch=64"]) == 0
    text = capsys.readouterr().out
    assert f"{numbers['memory']['peak'] / 1e9:.3f} GB" in text
    assert f"{numbers['step_s']:.4f} s" in text
    assert "DOES NOT FIT" not in text
    assert main([*words, "optim.global_batch=6400", "optim.micro_batch=400"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_unknown_gpu_and_batch_that_does_not_divide_are_named(capsys):
    with pytest.raises(ConfigError, match="rates are known for a100, h100, h200, cpu"):
        devices.find("tpu")
    assert main(["estimate", "configs/model/base.yaml", "--gpus", "3", "--gpu", "h100"]) == 2
    assert "optim.global_batch=8 is not a multiple" in capsys.readouterr().err
    for option, number in (("--gpus", "0"), ("--nodes", "-1")):
        assert main(["estimate", "configs/model/base.yaml", option, number, "--gpu", "h100"]) == 2
        assert f"{option} {number}: expected at least 1" in capsys.readouterr().err


def test_checkpoint_counts_weights_and_moments():
    u = 4 * cost(base().model).total.parameters
    sizes = [checkpoint_bytes(base(f"engine.zero_stage={stage}")) / u for stage in range(4)]
    assert sizes == [3, 4, 4, 3]


def test_average_of_the_weights_and_offloading_are_counted():
    config = base("engine.zero_stage=3")
    u = 4 * cost(config.model).total.parameters
    plain = memory.memory(config, 4, "gpu")
    averaged = base("engine.zero_stage=3", "optim.ema_decay=0.99")
    assert memory.memory(averaged, 4, "gpu").optimizer - plain.optimizer == u / 4
    assert checkpoint_bytes(averaged) - checkpoint_bytes(config) == u
    offloaded = base("engine.zero_stage=3", "engine.offload_optimizer=cpu", "engine.offload_parameters=cpu")
    found = memory.memory(offloaded, 4, "gpu")
    assert (found.parameters, found.optimizer) == (0.0, 0.0)
    assert found.peak < plain.peak
    assert memory.memory(offloaded, 4, "cpu").peak == memory.memory(config, 4, "cpu").peak
