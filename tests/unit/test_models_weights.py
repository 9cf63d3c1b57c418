"""First weights, presets, parameter groups and cost: what a run relies on before its first step."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.activations import clip_bytes, counted
from fmri_scale.config import ModelConfig, load_config
from fmri_scale.config.check import check_model
from fmri_scale.errors import ConfigError
from fmri_scale.models import MaskedAutoencoder, Predictor, cost, init_weights, parameter_groups
from fmri_scale.models.cost import SCAN_BACKWARD, SCAN_FORWARD
from tests.helpers.tiny_models import clips, drawn, tiny

PRESETS = Path(__file__).parents[2] / "configs" / "model"


def preset(name) -> ModelConfig:
    return load_config([PRESETS / f"{name}.yaml"]).model


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_base_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = MaskedAutoencoder(preset("base"))
    assert count(model) == 7_712_964
    assert count(model.backbone) == 5_173_020
    assert preset("base") == ModelConfig(), "the defaults are the published model"


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 0.1397), ("base", 7.713), ("large", 60.93), ("xl", 308.3), ("xxl", 1039.9)]
)
def test_presets_have_the_size_they_promise_and_cost_counts_it(name, millions):
    with torch.device("meta"):
        model = MaskedAutoencoder(preset(name))
    assert count(model) == pytest.approx(millions * 1e6, rel=2e-3)
    parts = cost(preset(name))
    assert parts.total.parameters == count(model)
    assert parts.encoder.parameters == count(model.backbone) + count(model.mask_tokens)


def test_every_preset_has_a_tested_size():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == {"tiny", "base", "large", "xl", "xxl"}


def test_weights_depend_on_the_seed_and_the_name_alone():
    torch.manual_seed(0)
    one = MaskedAutoencoder(tiny(), seed=3).state_dict()
    torch.manual_seed(1)
    same = MaskedAutoencoder(tiny(), seed=3).state_dict()
    deeper = MaskedAutoencoder(tiny(depths=[2, 2], prompt_len=2), seed=3).state_dict()
    other = MaskedAutoencoder(tiny(), seed=4).state_dict()
    encoder = Predictor(tiny(), outputs=1, seed=3).state_dict()
    differing = set()
    for name, value in one.items():
        assert torch.equal(value, same[name]), name
        assert torch.equal(value, deeper[name]), name
        if name.startswith("backbone."):
            assert torch.equal(value, encoder[name]), name
        differing |= {name.split(".")[-1]} if not torch.equal(value, other[name]) else set()
    assert differing >= {"weight", "bias", "conv_weight", "conv_bias", "space", "time"}


def test_first_weights_are_distributed_as_published():
    config = tiny(embed_dim=64, prompt_len=8)
    model = MaskedAutoencoder(config)
    mixer = model.backbone.stages[0].blocks[0].mixer
    assert torch.allclose(mixer.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert (mixer.D == 1).all()
    dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 1e-3 <= dt.min() < 2e-3
    assert 5e-2 < dt.max() <= 0.1001
    assert mixer.conv_weight.abs().max() <= 0.5
    assert mixer.conv_weight.abs().max() > 0.49
    assert mixer.in_proj.weight.abs().max() <= 64**-0.5
    assert float(mixer.in_proj.weight.detach().std()) == pytest.approx(64**-0.5 / 3**0.5, rel=0.02)
    for embedding in (model.backbone.stages[0].position.space, mixer.prompt):
        assert float(embedding.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert embedding.abs().max() < 0.2
    assert all((p == 0).all() for p in model.mask_tokens.parameters())
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, torch.nn.LayerNorm))


def test_a_model_on_the_meta_device_gets_its_weights_when_it_is_filled():
    with torch.device("meta"):
        model = MaskedAutoencoder(tiny(), seed=3)
    model = model.to_empty(device="cpu")
    init_weights(model, 3)
    for name, value in MaskedAutoencoder(tiny(), seed=3).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_model_has_no_buffers():
    assert not list(MaskedAutoencoder(tiny(strd="published")).buffers())


def test_parameter_groups_are_complete_disjoint_and_decay_matrices_only():
    model = MaskedAutoencoder(tiny(prompt_len=2, bidirectional=True))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.05)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names)
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    ends = {name.rsplit(".", 1)[-1] for name in plain}
    assert ends == {
        *("bias", "conv_bias", "A_log", "A_log_reverse", "D", "D_reverse", "weight"),
        *("space", "time", "prompt", "token", "window", "region"),
    }
    assert all("norm" in name for name in plain if name.endswith(".weight"))
    assert {"backbone.patch_embed.weight", "decoder.head.weight"} <= decayed
    assert all(name.endswith(("weight", "conv_weight")) and "norm" not in name for name in decayed)


def test_operations_of_the_matrix_products_are_those_counted_by_torch():
    config = tiny(depths=[2, 1, 1], num_frames=6)
    model = MaskedAutoencoder(config)
    volume, mask = clips(config), drawn(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(volume, mask, torch.zeros(24, 24, 24, dtype=torch.bool))
    frames = 8  # six, padded to whole windows
    elements = sum(blocks * grid**3 * frames * 2 * width for width, grid, blocks in [(6, 8, 4), (12, 4, 2), (24, 2, 1)])
    counted = counter.get_total_flops()
    expected = cost(config).total.forward_flops - elements * (SCAN_FORWARD * 16 + 2 * 4)
    assert counted == expected
    assert cost(config).total.backward_flops == 2 * (expected + elements * 8) + SCAN_BACKWARD * 16 * elements


@pytest.mark.parametrize(
    "config", [tiny(depths=[2, 2, 1], bidirectional=True), tiny(embed_dim=12, num_frames=8, checkpoint_blocks=True)]
)
def test_activation_bytes_are_what_autograd_keeps_of_volumes(config):
    model = MaskedAutoencoder(config)
    volume, mask = clips(config), drawn(config, ratio=0.99)
    with counted(model) as saved:
        output = model(volume, mask)
    assert output.loss.requires_grad
    assert cost(config, from_codes=False).activation_bytes(4) == pytest.approx(sum(saved.values()), rel=0.1)


@pytest.mark.parametrize(("recomputed", "megabytes"), [(False, 400), (True, 60)])
def test_a_clip_of_the_base_model_keeps_little_in_bf16(recomputed, megabytes):
    config = ModelConfig(checkpoint_blocks=recomputed)
    kept = sum(clip_bytes(config, bf16=True).values())
    assert kept <= megabytes * 1e6
    assert cost(config).activation_bytes(2) == pytest.approx(kept, rel=0.03)


def test_bytes_kept_are_counted_whatever_the_shape():
    config = tiny(depths=[2, 2, 1], bidirectional=True, prompt_len=2, num_frames=6, window_size=[4, 2, 4, 4])
    kept = sum(clip_bytes(config, bf16=False).values())
    assert cost(config).activation_bytes(4) == pytest.approx(kept, rel=0.05)


def test_a_grid_that_cannot_be_halved_is_refused():
    with pytest.raises(ConfigError, match="12 patches along x cannot be halved 3 times"):
        check_model(ModelConfig(patch_size=[8, 8, 8, 1]))
