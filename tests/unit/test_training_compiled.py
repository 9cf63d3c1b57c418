"""Compiled blocks train as plain ones; what a device or a ZeRO stage cannot do is refused in a line."""

import pytest
import torch

from fmri_scale.config import Config, EngineConfig, check
from fmri_scale.errors import ConfigError, LaunchError
from fmri_scale.models import MaskedAutoencoder, draw_mask
from fmri_scale.training import build
from fmri_scale.training.compiled import compile_blocks
from tests.helpers.tiny_run import tiny_model

CPU = torch.device("cpu")


def step(compiler: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of a training step."""
    torch._dynamo.reset()
    config = Config(model=tiny_model(image_size=[48, 48, 48], num_frames=4))
    config.engine.compile = compiler
    model = MaskedAutoencoder(config.model, seed=1)
    assert compile_blocks(model, config.engine, CPU) == (0 if compiler == "off" else 5)
    volume = torch.randn(1, 1, 48, 48, 48, 4, generator=torch.Generator().manual_seed(0))
    clip = torch.zeros(1, dtype=torch.int64)
    output = model(volume, draw_mask(config.mask, config.model, 0, clip, clip, CPU), None)
    output.loss.backward()
    return float(output.loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_compiled_blocks_give_the_same_loss_and_gradients():
    plain, compiled = step("off"), step("aot_eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert compiled[0] == pytest.approx(plain[0], rel=1e-6)
    assert compiled[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(compiled[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_names_of_the_weights_stay(tmp_path):
    config = Config(model=tiny_model())
    names = list(MaskedAutoencoder(config.model, seed=1).state_dict())
    config.engine.compile = "aot_eager"
    model = MaskedAutoencoder(config.model, seed=1)
    compile_blocks(model, config.engine, CPU)
    assert list(model.state_dict()) == names


def test_graphs_on_a_cpu_are_refused_in_a_line():
    config = Config()
    config.engine.compile, config.engine.cuda_graphs = "inductor", True
    with pytest.raises(ConfigError, match="a CPU has no CUDA graphs; set it to false"):
        compile_blocks(torch.nn.Identity(), config.engine, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": "inductor", "zero_stage": 3}, "ZeRO 3 fetches weights inside the blocks"),
        ({"cuda_graphs": True}, "needs engine.compile=inductor"),
        ({"offload_optimizer": "cpu", "zero_stage": 0}, "ZeRO 0 cannot offload"),
        ({"offload_parameters": "cpu"}, "needs engine.zero_stage=3"),
        ({"offload_optimizer": "nvme", "zero_stage": 3}, "engine.offload_dir, a folder on a local disk"),
        ({"offload_optimizer": "disk"}, "expected one of none, cpu, nvme"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message):
    config = Config()
    for key, value in changes.items():
        setattr(config.engine, key, value)
    with pytest.raises(ConfigError, match=message):
        check.check(config)


def test_local_disks_that_cannot_be_used_are_refused_in_a_line(monkeypatch):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    def load(self):
        raise RuntimeError("libaio.h: no such file\nand more")

    monkeypatch.setattr(AsyncIOBuilder, "load", load)
    build._require_nvme(EngineConfig(zero_stage=3, offload_optimizer="cpu"))
    with pytest.raises(
        LaunchError, match=r"async_io cannot be built \(libaio\.h: no such file\); install libaio-dev"
    ) as e:
        build._require_nvme(EngineConfig(zero_stage=3, offload_optimizer="nvme", offload_dir="/local"))
    assert "\n" not in str(e.value)
