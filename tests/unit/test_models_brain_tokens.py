"""Patches without brain are neither computed nor scored (model.brain_tokens); what is computed is what it was."""

from dataclasses import replace

import pytest
import torch

import fmri_scale
from fmri_scale.config import Config, MaskConfig, ModelConfig
from fmri_scale.config.check import check
from fmri_scale.errors import CheckpointError, ConfigError
from fmri_scale.models import Anatomy, Backbone, MaskedAutoencoder, Predictor, clip_keys, cost, draw_mask
from fmri_scale.models import brain as lists
from fmri_scale.models.block import Block
from fmri_scale.models.neurostorm_state import from_published, to_published
from fmri_scale.models.resample import PatchExpand, PatchMerge
from fmri_scale.models.shapes import StageShape
from fmri_scale.release.export import export
from fmri_scale.release.graph import export_graph
from tests.helpers.tiny_models import clips, tiny
from tests.helpers.tiny_run import tiny_config, tiny_model, write_run

TINY = tiny(brain_tokens=True)


def ball(config: ModelConfig = TINY) -> torch.Tensor:
    """A brain that is off the middle: about a fifth of the patches."""
    x, y, z = torch.meshgrid(*(torch.arange(n) for n in config.image_size), indexing="ij")
    return (x - 8) ** 2 + (y - 12) ** 2 + (z - 15) ** 2 < 55


def half_of_brain(config: ModelConfig, model: MaskedAutoencoder, batch: int, strategy: str = "token"):
    mask = MaskConfig(strategy=strategy, ratio=0.5, ratio_of="brain")
    return draw_mask(mask, config, 0, 0, torch.arange(batch), "cpu", Anatomy(brain=model.computed))


def told(config: ModelConfig = TINY, seed: int = 1) -> MaskedAutoencoder:
    model = MaskedAutoencoder(config, seed)
    model.set_brain(ball(config))
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 6},
        {"prompt_len": 2, "bidirectional": True, "checkpoint_blocks": True},
        {"strd": "published", "drop_path": 0.3},
        {"strd": "paper"},
    ],
    ids=str,
)
def test_where_all_patches_hold_brain_nothing_changes(changes):
    dense = tiny(**changes)
    volume, everywhere, found = clips(dense, 2), torch.ones(24, 24, 24, dtype=torch.bool), []
    for config in (dense, replace(dense, brain_tokens=True)):
        model = MaskedAutoencoder(config, 1)
        if config.brain_tokens:
            model.set_brain(everywhere)
        output = model(volume, half_of_brain(config, model, 2, "window"), everywhere, predict=True)
        output.loss.backward()
        found.append((output, [p.grad for p in model.parameters()]))
    (one, one_grads), (other, other_grads) = found
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(one.prediction, other.prediction)
    assert torch.equal(one.latent.flatten(1, 3), other.latent.flatten(1, 3))
    assert all(torch.equal(a, b) for a, b in zip(one_grads, other_grads, strict=True))
    assert {k: v.tolist() for k, v in one.metrics.items()} == {k: v.tolist() for k, v in other.metrics.items()}


@pytest.mark.parametrize("shifted", [False, True])
def test_a_block_is_that_block_over_each_sequence_of_patches(shifted):
    grid, window, frames = (6, 4, 8), (2, 4, 4, 4), 8
    here = torch.rand(grid, generator=torch.Generator().manual_seed(0)) < 0.3
    block = Block(StageShape(6, grid, 2, window, True), tiny(), shifted, 0, 0.0, encoder=True).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    block.set_patches(here)
    x = torch.randn(2, int(here.sum()), 1, 1, frames, 6, dtype=torch.float64, requires_grad=True)
    expected, shift = (
        torch.zeros_like(x).flatten(1, 4),
        [w // 2 if shifted and n > w else 0 for n, w in zip((*grid, frames), window, strict=True)],
    )
    number = torch.where(here, here.flatten().cumsum(0).view(grid) - 1, -1)
    token = torch.where(number[..., None] < 0, -1, number[..., None] * frames + torch.arange(frames))
    rolled = token.roll([-s for s in shift], (0, 1, 2, 3))
    for corner in torch.cartesian_prod(*(torch.arange(0, n, w) for n, w in zip(rolled.shape, window, strict=True))):
        cube = rolled[tuple(slice(a, a + w) for a, w in zip(corner.tolist(), window, strict=True))].flatten()
        if len(index := cube[cube >= 0]):
            line = Block(StageShape(6, (1, 1, 1), 1, (1, 1, 1, len(index)), False), tiny(), False, 0, 0.0, True)
            line.double().load_state_dict(block.state_dict())
            tokens = x.flatten(1, 4)[:, index].view(2, 1, 1, 1, -1, 6)
            expected = expected.index_copy(1, index, line(tokens).flatten(1, 4))
    y = block(x)
    torch.testing.assert_close(y.flatten(1, 4), expected)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.flatten(1, 4), x, upstream), torch.autograd.grad(expected, x, upstream)
    )


def test_merging_takes_zeros_for_missing_children_and_expanding_makes_those_that_are_there():
    fine, coarse = lists.stage_patches(ball(), TINY)
    merge, expand = PatchMerge(6, 2).double(), PatchExpand(12, 2).double()
    x = torch.randn(2, int(fine.sum()), 1, 1, 3, 6, dtype=torch.float64, requires_grad=True)
    whole = lists.spread(x.flatten(1, 4), lists.places(fine), fine.numel()).view(2, *fine.shape, 3, 6)
    dense_down = merge(whole)
    dense_up = expand(dense_down)
    merge.child_list, expand.octants = lists.children(fine, coarse), lists.octants(fine, coarse)
    down = merge(x)
    up = expand(down)
    torch.testing.assert_close(down, lists.take(dense_down, lists.places(coarse), 1))
    torch.testing.assert_close(up, lists.take(dense_up, lists.places(fine), 1))
    parameters = [x, *merge.parameters(), *expand.parameters()]
    upstream = torch.randn_like(up)
    dense = lists.take(dense_up, lists.places(fine), 1)
    found, wanted = (torch.autograd.grad(y, parameters, upstream) for y in (up, dense))
    torch.testing.assert_close(found, wanted)


def test_what_patches_without_brain_hold_changes_nothing():
    model, volume = told(), clips(TINY, 2)
    mask, other = half_of_brain(TINY, model, 2), volume.clone()
    inside = torch.nn.functional.interpolate(model.computed.view(1, 1, 8, 8, 8).float(), scale_factor=3)[0, 0] > 0
    other[:, :, ~inside] = torch.nan
    runs = []
    for clip in (volume, other):
        output = model(clip, mask, ball(), predict=True)
        runs.append((output, torch.autograd.grad(output.loss, list(model.parameters()))))
        assert torch.equal(model.backbone.features(clip), model.backbone(clip).mean((2, 3, 4, 5)))
    (one, one_grads), (two, two_grads) = runs
    assert torch.equal(one.loss, two.loss)
    assert torch.equal(one.prediction, two.prediction)
    assert all(torch.equal(a, b) for a, b in zip(one_grads, two_grads, strict=True))
    assert torch.equal(model.backbone.features(volume), model.backbone.features(other))
    assert not model.unpatchify(one.prediction)[:, :, ~inside].any()
    every = model(volume, mask, None).loss  # as published: all voxels of hidden patches, of those that are computed
    assert torch.isfinite(every)
    assert torch.equal(every, model(other, mask, None).loss)


def test_just_the_wanted_share_of_the_brains_tokens_is_hidden():
    model = told()
    output = model(clips(TINY, 2), half_of_brain(TINY, model, 2), ball())
    tokens = int(model.computed.sum()) * TINY.num_frames
    assert 0.1 < model.computed.float().mean() < 0.35
    assert output.metrics["masked_fraction"].item() == pytest.approx(round(0.5 * tokens) / tokens)
    assert output.metrics["masked_fraction_brain"] == output.metrics["masked_fraction"]
    assert output.latent.shape == (2, model.backbone.num_patches[1], 1, 1, TINY.num_frames, 12)


@pytest.mark.parametrize("form", ["published", "paper"])
def test_redundancy_dropout_looks_at_the_tokens_that_are_there(form):
    config = replace(TINY, strd=form)
    model = told(config)
    output = model(clips(config, 1), half_of_brain(config, model, 1), ball())
    fine, coarse = model.backbone.num_patches
    assert output.metrics["strd_counts"][1].sum() == config.num_frames * (2 * fine + coarse)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_block_is_one_graph_and_recomputes_alike():
    model = told(replace(TINY, num_frames=6, prompt_len=2, bidirectional=True, strd="published"))
    block, keys = model.backbone.stages[0].blocks[1], clip_keys(0, 0, torch.arange(2))
    x = torch.randn(2, model.backbone.num_patches[0], 1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    found = [torch.autograd.grad(run(x, keys).square().mean(), list(block.parameters())) for run in (block, compiled)]
    torch.testing.assert_close(*found)
    plain, again = (told(replace(TINY, checkpoint_blocks=c)) for c in (False, True))
    for model in (plain, again):
        model(clips(TINY, 1), half_of_brain(TINY, model, 1), ball()).loss.backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_predictor_pools_the_brains_tokens():
    model = Predictor(TINY, outputs=3)
    model.backbone.set_brain(ball())
    volume = clips(TINY, 2)
    torch.testing.assert_close(model(volume), model.head.out(model.backbone.features(volume)))
    keys = clip_keys(0, 0, torch.arange(2))
    assert torch.equal(model(volume, keys), model(volume))


def test_the_lists_are_no_part_of_the_state():
    plain, listed = MaskedAutoencoder(tiny(), 1), told()
    assert plain.state_dict().keys() == listed.state_dict().keys()
    assert not list(plain.buffers())
    assert [p.shape for p in plain.parameters()] == [p.shape for p in listed.parameters()]


def test_a_release_carries_the_option_and_computes_the_same(tmp_path):
    shape = tiny_model(patch_size=[12, 12, 12, 1], brain_tokens=True)
    write_run(tmp_path / "run", replace(tiny_config(shape), mask=MaskConfig(ratio=0.5, ratio_of="brain")))
    model = fmri_scale.from_pretrained(export(tmp_path / "run", tmp_path / "release"))
    assert model.config.brain_tokens
    clip = torch.randn(1, 1, 96, 96, 96, 6, generator=torch.Generator().manual_seed(0))
    direct = Backbone(model.config)
    direct.load_state_dict(model.backbone.state_dict())
    direct.set_brain(torch.from_numpy(model.mask))
    with torch.inference_mode():
        assert torch.equal(model(clip), direct(clip))
        assert torch.equal(model.features(clip), model(clip).mean((2, 3, 4, 5)))
        rebuilt = model.reconstruct(clip)
    fine = model.model.computed.view(8, 8, 8)
    assert model(clip).shape == (1, 16, model.backbone.num_patches[1], 1, 1, 6)
    assert 0 < fine.sum() < fine.numel()
    inside = fine.bool().repeat_interleave(12, 0).repeat_interleave(12, 1).repeat_interleave(12, 2)
    assert not rebuilt.hidden[:, ~inside].any()
    assert rebuilt.hidden[:, inside].float().mean().item() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(CheckpointError, match="brain_tokens"):
        export_graph(model, tmp_path / "encoder.pt2")
    for convert in (to_published, from_published):
        with pytest.raises(CheckpointError, match="computes all patches"):
            convert(model.model.state_dict(), model.config)


def test_costs_are_those_of_the_patches_that_are_computed():
    model = told()
    every, some = cost(TINY).total, cost(TINY, patches=model.backbone.num_patches).total
    assert some.parameters == every.parameters == sum(p.numel() for p in model.parameters())
    assert 0.15 < some.forward_flops / every.forward_flops < 0.35
    assert 0.15 < some.kept_values / every.kept_values < 0.35
    assert cost(TINY, patches=[512, 64]) == cost(TINY)


def test_what_makes_no_sense_is_refused():
    model = MaskedAutoencoder(TINY)
    with pytest.raises(ValueError, match="with set_brain"):
        model.backbone(clips(TINY))
    with pytest.raises(ValueError, match="the brain is empty"):
        model.set_brain(torch.zeros(24, 24, 24))
    with pytest.raises(ValueError, match="expected the voxels"):
        model.set_brain(torch.ones(8, 8, 8))
    with pytest.raises(ValueError, match=r"model\.brain_tokens=true alone"):
        MaskedAutoencoder(tiny()).set_brain(ball())
    brain_tokens = ModelConfig(brain_tokens=True)
    with pytest.raises(ConfigError, match=r"mask\.strategy=token would count .* set mask\.ratio_of=brain"):
        check(Config(model=brain_tokens))
    with pytest.raises(ConfigError, match=r"mask\.strategy=tube"):
        check(Config(model=brain_tokens, mask=MaskConfig(strategy="mixture", mixture={"tube": 1.0})))
    with pytest.raises(ConfigError, match="mamba_ssm"):
        check(Config(model=replace(brain_tokens, backend="mamba_ssm"), mask=MaskConfig(ratio_of="brain")))
