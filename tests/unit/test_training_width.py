"""The learning rate of a narrow model serves a wide one: each step changes what a model says by the same amount."""

import functools
import math

import pytest
import torch

from fmri_scale.config import Config, load_config
from fmri_scale.models import MaskedAutoencoder, TokenMask, draw_mask
from fmri_scale.training.width import optimizer_groups, rate_scales
from tests.helpers.tiny_run import tiny_model

BASE, WIDTHS = 16, (16, 32, 64, 128)
STEPS, RATE = 2, 1e-3


def configuration(width: int, scaled: bool) -> Config:
    config = Config(model=tiny_model(embed_dim=width, image_size=[24, 24, 24], patch_size=[6, 6, 6, 1], num_frames=2))
    config.optim.base_width = BASE if scaled else 0
    return config


@torch.no_grad()
def predict(model: MaskedAutoencoder, volume: torch.Tensor, mask: TokenMask) -> torch.Tensor:
    prediction = model.eval()(volume, mask, None).prediction
    assert prediction is not None
    return prediction


@functools.cache
def movement(width: int, scaled: bool) -> float:
    """Return by how much (RMS) a few steps of Adam move the prediction of a model."""
    config = configuration(width, scaled)
    model = MaskedAutoencoder(config.model, seed=1)
    rng = torch.Generator().manual_seed(0)
    pattern = torch.randn(1, 1, 6, 6, 6, 1, generator=rng).repeat(2, 1, 4, 4, 4, 2)
    volume = pattern + 0.1 * torch.randn(pattern.shape, generator=rng)
    clip = torch.arange(2)
    mask = draw_mask(config.mask, config.model, 0, clip * 0, clip, torch.device("cpu"))
    groups = [{**g, "lr": RATE * g["lr_scale"]} for g in optimizer_groups(model, config)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    before = predict(model, volume, mask)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model.train()(volume, mask, None).loss.backward()
        optimizer.step()
    return float((predict(model, volume, mask) - before).square().mean().sqrt())


def slope(scaled: bool) -> float:
    """Return the exponent of the movement over the width, a least-squares line through the logarithms."""
    points = torch.tensor([[math.log2(w), math.log2(movement(w, scaled))] for w in WIDTHS])
    centred = points - points.mean(0)
    return float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())


def test_coordinate_check():
    """Without the rule a step moves a wide model ever more; with it, as much as the base model."""
    assert slope(scaled=False) > 0.2
    assert abs(slope(scaled=True)) < 0.1


def test_base_width_changes_nothing():
    plain, scaled = configuration(BASE, False), configuration(BASE, True)
    model = MaskedAutoencoder(plain.model, seed=1)
    assert set(rate_scales(scaled).values()) == {1.0}
    groups = [optimizer_groups(model, config) for config in (plain, scaled)]
    assert [[id(p) for p in g["params"]] for g in groups[0]] == [[id(p) for p in g["params"]] for g in groups[1]]
    assert [g["weight_decay"] for g in groups[0]] == [g["weight_decay"] for g in groups[1]]


def test_matrices_from_the_width_alone_are_slowed_and_decay_as_before():
    config = configuration(64, True)
    scales = rate_scales(config)
    kept = ("embed", "norm", "bias", "A_log", ".D", "space", "time", "conv_weight", "mask_tokens", "prompt")
    for name, scale in scales.items():
        assert (scale == 1.0) == any(part in name for part in kept), name
    assert {scale for scale in scales.values() if scale != 1.0} == {0.25}
    model = MaskedAutoencoder(config.model, seed=1)
    groups = optimizer_groups(model, config)
    assert sum(len(g["params"]) for g in groups) == len(scales)
    assert {g["weight_decay"] * g["lr_scale"] for g in groups} == {0.0, config.optim.weight_decay}


@pytest.mark.parametrize("preset", ["large", "xl", "xxl"])
def test_presets_take_the_rate_of_the_base_model(preset):
    config = load_config(["configs/run/base.yaml", f"configs/model/{preset}.yaml"])
    assert config.optim.base_width == load_config(["configs/model/base.yaml"]).model.embed_dim
    assert 36 / config.model.embed_dim in rate_scales(config).values()
