"""The masked autoencoder beyond the published one: any clip length, channels and masks, loss, gradients, dropping."""

from dataclasses import replace

import pytest
import torch

from fmri_scale.kernels.windows import Windows
from fmri_scale.models import Backbone, MaskedAutoencoder, Predictor, TokenMask, clip_keys, init_weights
from fmri_scale.models.block import Block
from fmri_scale.models.embed import patchify, unpatchify
from fmri_scale.models.shapes import StageShape
from fmri_scale.models.strd import RedundancyDropout
from tests.helpers.tiny_models import clips, drawn, tiny

BRAIN = torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(1)) < 0.4


def encoder(config):
    backbone = Backbone(config)
    init_weights(backbone, 0)
    return backbone


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_patches_are_cut_and_put_back():
    volume = torch.arange(2 * 2 * 6 * 4 * 2 * 3).view(2, 2, 6, 4, 2, 3).float()
    patches = patchify(volume, (3, 2, 1))
    assert patches.shape == (2, 2, 2, 2, 3, 3 * 2 * 1 * 2)
    assert patches[1, 1, 0, 1, 2].tolist() == [
        float(volume[1, c, x, y, 1, 2]) for x in (3, 4, 5) for y in (0, 1) for c in (0, 1)
    ]
    assert torch.equal(unpatchify(patches, (3, 2, 1)), volume)
    assert torch.equal(unpatchify(patchify(volume[:, :1], (3, 2, 1)), (3, 2, 1)), volume[:, :1])


@pytest.mark.parametrize("strategy", ["token", "window", "tube"])
@pytest.mark.parametrize("frames", [1, 3, 7, 10])
def test_clips_of_any_length_train_under_any_mask(strategy, frames):
    config = tiny(num_frames=5)
    model = MaskedAutoencoder(config)
    output = model(clips(config, 2, frames), drawn(config, 2, frames, strategy=strategy), BRAIN)
    output.loss.backward()
    assert output.prediction is None
    assert output.latent.shape == (2, 4, 4, 4, frames, 12)
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(g).all() for g in gradients(model).values())


@pytest.mark.parametrize(
    "config",
    [
        tiny(depths=[2]),
        tiny(depths=[1, 1, 1, 1], channel_multiplier=3),
        tiny(in_channels=2, first_window_size=[2, 4, 2, 4]),
        tiny(image_size=[24, 12, 18], last_stage_full=False, window_size=[3, 2, 5, 3]),
        tiny(expand=1, state_dim=8, conv_dim=2, mlp_ratio=2.5, prompt_len=1),
        tiny(bidirectional=True, prompt_len=2, conv_dim=1),
        tiny(wrap_shift=False, first_window_size=[2, 4, 2, 4]),
    ],
)
def test_shapes_the_published_model_cannot_have(config):
    model = MaskedAutoencoder(config)
    volume = clips(config, frames=5)
    output = model(volume, drawn(config, frames=5), predict=True)
    output.loss.backward()
    assert model.unpatchify(output.prediction).shape == volume.shape
    assert all(g is not None for g in gradients(model).values())


@pytest.mark.parametrize("axis", range(4))
def test_without_wrapping_no_token_meets_one_from_the_opposite_edge(axis):
    grid, window = (4, 8, 4, 8), (2, 4, 2, 4)
    tokens = torch.randn(1, *grid, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = {}
    for wrap in (True, False):
        shape = StageShape(12, grid[:3], 2, window, True, wrap)
        block = Block(shape, tiny(), shifted=True, number=1, drop_path=0.0, encoder=True).double()
        init_weights(block, 0)
        x = tokens.clone().requires_grad_()
        outputs[wrap] = block(x)
        (gradient,) = torch.autograd.grad(outputs[wrap].select(axis + 1, 0).square().sum(), x)
        assert (gradient.select(axis + 1, grid[axis] - 1).abs().max() > 0) == wrap
    inner = tuple(slice(w // 2, n - w // 2) for n, w in zip(grid, window, strict=True))
    torch.testing.assert_close(outputs[True][0][inner], outputs[False][0][inner])


def test_loss_is_the_mean_squared_error_on_hidden_brain_voxels_of_each_clip():
    config = tiny()
    model = MaskedAutoencoder(config)
    volume, mask = clips(config, 3), drawn(config, 3, strategy="window", ratio=0.25)
    output = model(volume, mask, BRAIN, predict=True)
    hidden = model.unpatchify(mask.hidden.unsqueeze(-1).expand_as(output.prediction).float()).bool()
    squared = (model.unpatchify(output.prediction) - volume).square()
    in_brain = hidden & BRAIN[None, None, ..., None]
    expected = torch.stack([squared[i][in_brain[i]].mean() for i in range(3)]).mean()
    assert torch.allclose(output.loss, expected, rtol=1e-5)
    everywhere = torch.stack([squared[i][hidden[i]].mean() for i in range(3)]).mean()
    assert torch.allclose(model(volume, mask).loss, everywhere, rtol=1e-5)


def test_a_clip_without_hidden_brain_adds_nothing():
    config = tiny()
    model = MaskedAutoencoder(config)
    output = model(clips(config), drawn(config), torch.zeros(24, 24, 24, dtype=torch.bool))
    output.loss.backward()
    assert output.loss == 0
    assert all(torch.isfinite(g).all() for g in gradients(model).values())


def test_a_batch_and_its_clips_one_by_one_have_the_same_gradient():
    config = tiny()
    model = MaskedAutoencoder(config).double()
    volume, mask = clips(config, 3, dtype=torch.float64), drawn(config, 3, strategy="window")
    model(volume, mask, BRAIN).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for i in range(3):
        one = TokenMask.given(mask.hidden[i : i + 1], mask.grid, mask.strategy, mask.keys[i : i + 1])
        (model(volume[i : i + 1], one, BRAIN).loss / 3).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("changes", [{"prompt_len": 2, "bidirectional": True}, {"strd": "published", "drop_path": 0.4}])
def test_gradients_agree_with_finite_differences(changes):
    config = tiny(image_size=[12, 12, 24], num_frames=6, first_window_size=[2, 4, 4, 4], depths=[2, 2], **changes)
    model = MaskedAutoencoder(config).double()
    volume, mask = clips(config, 2, dtype=torch.float64), drawn(config, 2, strategy="window")
    brain = BRAIN[:12, :12]
    model(volume, mask, brain).loss.backward()
    rng = torch.Generator().manual_seed(0)
    kinds = {}
    for name, parameter in model.named_parameters():
        kinds.setdefault(".".join(name.split(".")[-2:]), []).append(parameter)
    assert len(kinds) >= 20
    for kind, parameters in kinds.items():
        directions = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in parameters]
        losses = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                torch._foreach_add_(parameters, directions, alpha=step)
                losses.append(float(model(volume, mask, brain).loss))
                torch._foreach_add_(parameters, directions, alpha=-step)
        numeric = (losses[0] - losses[1]) / 2e-6
        analytic = sum(float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True))
        assert numeric == pytest.approx(analytic, rel=2e-4, abs=2e-8), kind


def test_recomputed_blocks_have_equal_loss_and_gradients():
    config = tiny(strd="published", drop_path=0.5, depths=[2, 2])
    kept, recomputed = (MaskedAutoencoder(replace(config, checkpoint_blocks=c), seed=2) for c in (False, True))
    volume, mask = clips(config, 2), drawn(config, 2)
    losses = [model(volume, mask, BRAIN).loss for model in (kept, recomputed)]
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1]
    for name, gradient in gradients(kept).items():
        assert torch.equal(gradient, gradients(recomputed)[name]), name


@pytest.mark.parametrize(("strategy", "used"), [("token", "token"), ("tube", "token"), ("window", "window")])
def test_every_mask_token_has_a_gradient_and_only_the_used_one_is_not_zero(strategy, used):
    config = tiny()
    model = MaskedAutoencoder(config)
    model(clips(config), drawn(config, strategy=strategy)).loss.backward()
    for name, parameter in model.mask_tokens.named_parameters():
        assert (parameter.grad.abs().sum() > 0) == (name == used)


def test_hidden_tokens_do_not_reach_the_prediction():
    config = tiny()
    model = MaskedAutoencoder(config)
    volume, mask = clips(config), drawn(config)
    hidden = model.unpatchify(mask.hidden.unsqueeze(-1).expand(-1, -1, 27).float()).bool()
    with torch.no_grad():
        one = model(volume, mask).prediction
        other = model(torch.where(hidden, torch.randn_like(volume), volume), mask).prediction
        third = model(volume + 0.1, mask).prediction
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_redundancy_dropout_zeroes_whole_tokens_in_training_only():
    windows = Windows((8, 4, 4, 8), (4, 4, 4, 4), (2, 0, 0, 2))
    h = 0.01 * torch.randn(3, windows.num_tokens, 6, generator=torch.Generator().manual_seed(0))
    drop, keys = RedundancyDropout(salt=1), clip_keys(0, 0, torch.arange(3))
    kept = drop(h, windows, keys)
    dropped = (kept == 0).all(-1)
    assert torch.equal(kept[~dropped], h[~dropped])
    assert 0.002 < dropped.float().mean() < 0.008, "near-identical tokens go at the published rate of 0.5 %"
    assert torch.equal(drop(h, windows, keys), kept)
    assert torch.equal(drop(h[1:2], windows, keys[1:2])[0], kept[1])
    assert not torch.equal(RedundancyDropout(salt=2)(h, windows, keys), kept)
    assert drop.eval()(h, windows, keys) is h


def test_stochastic_depth_drops_clips_by_their_key_in_training_only():
    config = tiny(drop_path=0.6, depths=[2, 2])
    model = Predictor(config, outputs=2)
    volume, keys = clips(config, 4), clip_keys(0, 0, torch.arange(4))
    trained = model(volume, keys)
    assert torch.equal(model(volume, keys), trained)
    assert torch.allclose(model(volume[2:3], keys[2:3]), trained[2:3], atol=1e-6)
    with pytest.raises(ValueError, match="keys"):
        model(volume)
    plain = Predictor(tiny(depths=[2, 2]), outputs=2)
    assert torch.equal(model.eval()(volume), plain(volume))
    assert not torch.equal(trained, plain(volume))


def test_a_bidirectional_window_lets_its_first_token_see_its_last():
    """One window a clip, so the forward scan alone cannot carry anything from the last token to the first."""
    changes = {"image_size": [3, 3, 12], "window_size": [1, 1, 4, 4], "depths": [1], "last_stage_full": False}
    seen = {}
    for both in (False, True):
        config = tiny(first_window_size=[1, 1, 4, 4], bidirectional=both, **changes)
        backbone = encoder(config)
        volume = clips(config)
        moved = volume.clone()
        moved[..., 9:, 3] += 1.0
        seen[both] = not torch.equal(backbone(volume)[..., 0, 0], backbone(moved)[..., 0, 0])
    assert seen == {False: False, True: True}


def test_features_are_the_mean_of_the_latent_map():
    config = tiny()
    backbone = encoder(config)
    volume = clips(config, 2)
    latent = backbone(volume)
    assert latent.shape == (2, 12, 4, 4, 4, 4)
    assert torch.allclose(backbone.features(volume), latent.mean((2, 3, 4, 5)), atol=1e-6)


def test_longer_clips_take_interpolated_frames_and_shorter_ones_the_first():
    position = Backbone(tiny(num_frames=5)).stages[0].position
    with torch.no_grad():
        position.time.copy_(torch.arange(5.0).unsqueeze(1).expand(5, 6))
        position.space.zero_()
        assert torch.allclose(position(torch.zeros(1, 8, 8, 8, 9, 6))[0, 0, 0, 0, :, 0], torch.arange(9) / 2)
        assert position(torch.zeros(1, 8, 8, 8, 3, 6))[0, 0, 0, 0, :, 0].tolist() == [0, 1, 2]


def test_clips_and_masks_of_another_shape_are_refused():
    config = tiny()
    model = MaskedAutoencoder(config)
    with pytest.raises(ValueError, match=r"volume of shape \(1, 2, 24, 24, 24, 4\)"):
        model(clips(tiny(in_channels=2)), drawn(config))
    with pytest.raises(ValueError, match=r"mask of 1 clips of tokens \(8, 8, 8, 4\): expected 1 of \(8, 8, 8, 5\)"):
        model(clips(config, frames=5), drawn(config, frames=4))


def test_bf16_autocast_stays_near_fp32():
    config = tiny(depths=[2, 2])
    model = MaskedAutoencoder(config)
    volume, mask = clips(config, 2), drawn(config, 2)
    exact = model(volume, mask, BRAIN).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(volume, mask, BRAIN).loss
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=5e-3)
    assert all(torch.isfinite(g).all() for g in gradients(model).values())
