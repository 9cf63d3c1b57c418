"""A run starts from a release with another clip length, patch grid or windows, and says what became of each tensor."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch

import fmri_scale
from fmri_scale.cli import main
from fmri_scale.config import Config
from fmri_scale.errors import CheckpointError, ConfigError
from fmri_scale.evaluation.experiment.arms import Arm, resolve
from fmri_scale.models import Backbone, MaskedAutoencoder
from fmri_scale.models.embed import patchify
from fmri_scale.release import Pretrained
from fmri_scale.release.export import ExportSettings, export, shapes_of
from fmri_scale.release.fit import Fitted, fit, resize, resize_matrix
from fmri_scale.release.reference import reference_clip
from fmri_scale.release.start import run_config, start, starter
from fmri_scale.training.supervise import plan
from tests.helpers.tiny_run import tiny_config, tiny_model, weights_of, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    config = tiny_config()
    config.data.normalisation = "voxel_z"
    write_run(folder / "run", config)
    export(folder / "run", folder / "whole")
    export(folder / "run", folder / "encoder", ExportSettings(contents="encoder"))
    return folder


@pytest.fixture(scope="module")
def release(folder) -> Pretrained:
    return fmri_scale.from_pretrained(folder / "whole")


def fitted(release: Pretrained, **changes: object) -> Fitted:
    model = dataclasses.replace(release.config, **changes)
    wanted = shapes_of(MaskedAutoencoder(model).state_dict())
    return fit(release.model.state_dict(), release.config, wanted, model)


def test_the_same_shape_is_taken_as_it_is(release):
    found = fitted(release)
    assert found.fitted == found.new == []
    assert found.state.keys() == release.model.state_dict().keys()
    for name, value in release.model.state_dict().items():
        assert torch.equal(found.state[name], value)


@pytest.mark.parametrize("frames", [1, 4, 6, 9, 24])
def test_another_clip_length_computes_what_the_release_computes_on_such_clips(release, frames):
    found = fitted(release, num_frames=frames)
    model = Backbone(dataclasses.replace(release.config, num_frames=frames)).eval()
    model.load_state_dict({k.removeprefix("backbone."): v for k, v in found.state.items() if k.startswith("backbone.")})
    clip = reference_clip(release, frames)
    with torch.inference_mode():
        assert torch.allclose(model.features(clip), release.features(clip), rtol=1e-5, atol=1e-6)
    assert all(name.endswith(".position.time") for name in found.fitted)
    assert bool(found.fitted) == (frames != 6)


def test_a_finer_patch_grid_keeps_the_tokens_of_a_smooth_image(release):
    """Enlarge patches from 12 to 24 voxels: an image that is the enlarged one gives the tokens it gave."""
    fine = tiny_model(patch_size=[12, 12, 12, 1], image_size=[48, 48, 48])
    coarse = tiny_model(patch_size=[24, 24, 24, 1], image_size=[96, 96, 96])
    weights = MaskedAutoencoder(fine, 1).state_dict()
    found = fit(weights, fine, shapes_of(MaskedAutoencoder(coarse).state_dict()), coarse)
    patch = torch.randn(12, 12, 12, 1, generator=torch.Generator().manual_seed(0))
    enlarged = resize(patch.double(), {0: 24, 1: 24, 2: 24}).float()
    old = weights["backbone.patch_embed.weight"] @ patch.flatten()
    new = found.state["backbone.patch_embed.weight"] @ enlarged.flatten()
    assert torch.allclose(new, old, rtol=1e-4, atol=1e-5)
    assert sorted(found.fitted) == ["backbone.patch_embed.weight", "decoder.head.bias", "decoder.head.weight"]


def test_a_patch_is_split_in_the_order_in_which_the_model_cuts_it(release):
    """A kernel of a different number along x, y and z must be resized along its own axes."""
    old, new = tiny_model(patch_size=[6, 8, 12, 1]), tiny_model(patch_size=[6, 8, 24, 1])
    ramp = torch.arange(96.0).view(1, 1, 1, 1, 96, 1).expand(1, 1, 96, 96, 96, 1)
    along_z = patchify(ramp, old.patch_size)[0, 0, 0, 0, 0]
    state = MaskedAutoencoder(old, 1).state_dict()
    state["decoder.head.bias"] = along_z
    found = fit(state, old, shapes_of(MaskedAutoencoder(new).state_dict()), new)
    bias = found.state["decoder.head.bias"].view(6, 8, 24)
    assert torch.allclose(bias, bias[:1, :1].expand_as(bias))
    assert (bias[0, 0].diff() >= 0).all()
    assert bias[0, 0, 0] == 0
    assert bias[0, 0, -1] == 11


def test_positions_keep_their_place_on_another_grid(release):
    old, new = tiny_model(patch_size=[12, 12, 12, 1]), tiny_model(patch_size=[6, 6, 6, 1])
    state = MaskedAutoencoder(old, 1).state_dict()
    centres = torch.arange(8.0) * 12 + 6
    state["backbone.stages.0.position.space"] = centres.view(8, 1, 1, 1).expand(8, 8, 8, 8).clone()
    found = fit(state, old, shapes_of(MaskedAutoencoder(new).state_dict()), new)
    space = found.state["backbone.stages.0.position.space"]
    assert space.shape == (16, 16, 16, 8)
    # inside, a position that told the centre of its patch in voxels still does
    assert torch.allclose(space[1:-1, 3, 5, 0], torch.arange(1, 15) * 6.0 + 3)
    assert torch.allclose(space, space[:, :1, :1, :1].expand_as(space))
    assert found.state["backbone.stages.1.position.space"].shape == (8, 8, 8, 16)


def test_window_tokens_follow_their_window(release):
    found = fitted(release, window_size=[4, 2, 2, 2])
    old = release.model.state_dict()["mask_tokens.window"].view(2, 2, 2, 4, 8)
    new = found.state["mask_tokens.window"].view(4, 2, 2, 2, 8)
    assert torch.allclose(new[0], resize(old[0].double(), {2: 2}).float(), atol=1e-6)
    assert torch.allclose(new.mean((0, 3)), old.mean((0, 3)), atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (5, 7), (1, 3), (3, 1)])
def test_resizing_keeps_constants(old, new):
    matrix = resize_matrix(old, new)
    assert matrix.shape == (new, old)
    assert torch.allclose(matrix.sum(1), torch.ones(new, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"embed_dim": 12},
            r"backbone\.patch_embed\.weight is \[8, 13824\] in the release and \[12, 13824\] in the run",
        ),
        ({"depths": [1, 1]}, r"with the further backbone\.stages\.0\.blocks\.1\."),
        ({"depths": [3, 1]}, r"without backbone\.stages\.0\.blocks\.2\."),
        ({"state_dim": 8}, r"mixer\.A_log is \[16, 4\] in the release"),
        ({"in_channels": 2}, r"patch_embed\.weight"),
    ],
)
def test_another_model_is_refused_by_name(release, changes, message):
    with pytest.raises(CheckpointError, match=message):
        fitted(release, **changes)


def test_prompts_that_the_release_lacks_are_left_to_the_seed(release):
    found = fitted(release, prompt_len=4)
    assert found.new
    assert all(name.endswith("mixer.prompt") for name in found.new)


def test_an_encoder_alone_leaves_the_decoder_to_the_seed(folder, caplog, tmp_path):
    encoder = fmri_scale.from_pretrained(folder / "encoder")
    config = Config(run_dir=str(tmp_path), seed=11, model=encoder.config, start_from="there")
    model = MaskedAutoencoder(config.model, config.seed)
    with caplog.at_level(logging.INFO, logger="fmri_scale"):
        start(model, encoder, config)
    drawn, trained = MaskedAutoencoder(config.model, 11).state_dict(), weights_of(tiny_config())
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name] if name.startswith("backbone.") else drawn[name]), name
    assert "new, drawn from the seed: mask_tokens.token" in caplog.text
    record = json.loads((tmp_path / "start.json").read_text())
    assert record["release"] == encoder.identity
    assert len(record["taken"]) + len(record["new"]) == len(drawn)


def test_the_release_gives_what_the_run_does_not_say(folder, release):
    config = run_config([], [f"start_from={folder / 'whole'}", "optim.lr=1e-3"])
    assert config.model == release.config
    assert config.data.normalisation == "voxel_z"
    assert config.optim.lr == 1e-3
    changed = run_config([], [f"start_from={folder / 'whole'}", "model.num_frames=12"])
    assert changed.model == dataclasses.replace(release.config, num_frames=12)
    assert run_config([], []).model == Config().model


def test_another_normalisation_is_refused(folder):
    config = run_config([], [f"start_from={folder / 'whole'}", "data.normalisation=run_z"])
    with pytest.raises(ConfigError, match=r"data\.normalisation=run_z, but .* was trained with voxel_z"):
        starter(config)


def test_a_release_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        run_config([], [f"start_from={tmp_path / 'none'}"])


def test_a_launch_and_an_arm_train_what_the_release_decides(folder, release, tmp_path):
    """The ranks read one file, in which nothing may stand that only the schema said."""
    (tmp_path / "own.yaml").write_text("log:\n  wandb: off\nmodel:\n  num_frames: 12\n")
    items = [str(tmp_path / "own.yaml"), f"start_from={folder / 'whole'}", f"run_dir={tmp_path / 'run'}", "seed=4"]
    wanted = run_config(items[:1], items[1:])
    made = plan.make(items, ranks_per_node=1)
    assert run_config([made.config], []) == wanted
    assert wanted.model == dataclasses.replace(release.config, num_frames=12)
    assert wanted.data.normalisation == "voxel_z"
    assert resolve(Arm("a", 4, tmp_path, tuple(items))) == dataclasses.asdict(wanted)


@pytest.mark.parametrize("command", ["estimate", "doctor"])
def test_commands_about_a_run_take_the_model_of_its_release(folder, release, tmp_path, monkeypatch, command):
    seen = []

    def look(config, *rest):
        seen.append(config)
        raise ConfigError("seen")

    monkeypatch.setattr("fmri_scale.training.estimate.estimate", look)
    monkeypatch.setattr("fmri_scale.training.doctor.examine", look)
    assert main([command, f"start_from={folder / 'whole'}", f"run_dir={tmp_path / 'run'}"]) == 2
    assert seen[0].model == release.config
