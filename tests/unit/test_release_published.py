"""Public NeuroSTORM checkpoints become releases that compute what the published code computed; the rest is refused."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies
from safetensors.torch import load_file

import fmri_scale
from fmri_scale import cli
from fmri_scale.cli.parity import compare, read_case
from fmri_scale.config.check import check_model
from fmri_scale.errors import CheckpointError, ConfigError
from fmri_scale.models import MaskedAutoencoder
from fmri_scale.models.neurostorm_state import from_published, to_published
from fmri_scale.release import layout
from fmri_scale.release.detect import detect
from fmri_scale.release.pickle_values import UnsafePickleError
from fmri_scale.release.published import import_neurostorm, read_published
from fmri_scale.release.verify import verify_release
from tests.helpers import malicious
from tests.helpers.published_files import hyper_of, lightning, published_weights
from tests.helpers.tiny_run import tiny_model

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors") if path.stem != "strd")
SHAPES = {name: tuple(t.shape) for name, t in to_published(MaskedAutoencoder(tiny_model()).state_dict()).items()}


@pytest.mark.parametrize("name", CASES)
def test_an_imported_checkpoint_passes_parity(name, tmp_path):
    case, arguments = read_case(GOLDEN / f"{name}.safetensors")
    file = lightning(tmp_path / f"{name}.ckpt", published_weights(case), hyper_of(arguments))
    import_neurostorm(file, tmp_path / "release")
    model = fmri_scale.from_pretrained(tmp_path / "release")
    # the golden numbers are compared with what the release holds, not with what went in
    theirs = to_published(model.model.state_dict())
    case = {k: v for k, v in case.items() if not k.startswith("param.")} | {f"param.{k}": v for k, v in theirs.items()}
    errors = compare(case, arguments, torch.float32, "torch", torch.device("cpu"))
    assert max(errors.values()) < 2e-5, max(errors, key=errors.get)
    assert model.contents == ("autoencoder" if name.startswith("mae") else "encoder")
    assert verify_release(tmp_path / "release")


def test_the_release_itself_computes_the_published_latent(tmp_path):
    case, arguments = read_case(GOLDEN / "encoder_first_window.safetensors")
    file = lightning(tmp_path / "a.ckpt", published_weights(case), hyper_of(arguments))
    import_neurostorm(file, tmp_path / "release")
    model = fmri_scale.from_pretrained(tmp_path / "release")
    with torch.inference_mode():
        latent = model(case["x_int8"].float() * case["scale"])
    assert float((latent - case["latent"]).norm() / case["latent"].norm()) < 2e-5


def test_the_older_layout_imports_and_passes_parity(tmp_path):
    case, arguments = read_case(GOLDEN / "mae_window.safetensors")
    weights = published_weights(case)
    weights["mask_token"] = weights.pop("window_mask_token")
    del weights["atlas_mask_token"]
    assert weights["mask_token"].shape == (256, 6)
    file = lightning(tmp_path / "old.ckpt", weights, hyper_of(arguments))
    found = import_neurostorm(file, tmp_path / "release")
    model = fmri_scale.from_pretrained(tmp_path / "release")
    theirs = to_published(model.model.state_dict())
    case = {k: v for k, v in case.items() if not k.startswith("param.")} | {f"param.{k}": v for k, v in theirs.items()}
    errors = compare(case, arguments, torch.float32, "torch", torch.device("cpu"))
    assert max(errors.values()) < 2e-5
    went = {row["key"]: row["to"] for row in found.keys}
    assert went["model.mask_token"] == "mask_tokens.window"
    made = {row["to"] for row in found.keys if row["key"] is None}
    assert made == {"mask_tokens.token (set to zero)", "mask_tokens.region (set to zero)"}


def test_every_key_is_accounted_for_and_heads_are_kept(tmp_path, capsys):
    case, arguments = read_case(GOLDEN / "encoder_prompt.safetensors")
    weights = published_weights(case)
    heads = {"output_head.head.head.weight": torch.randn(1, 48), "output_head.head.head.bias": torch.randn(1)}
    file = lightning(tmp_path / "tuned.ckpt", weights, hyper_of(arguments), heads=heads)
    assert cli.main(["import-neurostorm", str(file), "--out", str(tmp_path / "release"), "--keys"]) == 0
    printed = capsys.readouterr().out
    assert all(f"model.{name} " in printed for name in weights)
    report = json.loads((tmp_path / "release" / layout.IMPORTED).read_text())
    assert {row["key"] for row in report["keys"]} == {f"model.{name}" for name in weights} | set(heads)
    stored = load_file(tmp_path / "release" / layout.HEADS)
    assert stored.keys() == heads.keys()
    assert all(torch.equal(stored[name], heads[name]) for name in heads)
    model = fmri_scale.from_pretrained(tmp_path / "release")
    assert len(model.model.state_dict()) == len(weights)
    assert model.config.prompt_len == 5
    assert model.record["published"]["epoch"] == 29


def test_architecture_is_read_from_shapes_alone(tmp_path):
    config = tiny_model(window_size=[4, 4, 4, 4], first_window_size=[4, 4, 4, 4], depths=[1, 2, 1], mlp_ratio=2.0)
    weights = to_published(MaskedAutoencoder(config, 1).state_dict())
    torch.save(weights, tmp_path / "bare.pt")
    found = read_published(tmp_path / "bare.pt")
    assert found.detected.config == config
    assert {found.detected.origin[name] for name in ("window_size", "first_window_size", "last_stage_full")} == {
        "released architecture (assumed)"
    }
    assert torch.equal(
        found.weights["decoder.norm.bias"], MaskedAutoencoder(config, 1).state_dict()["decoder.norm.bias"]
    )


def test_what_no_shape_tells_can_be_given(tmp_path, capsys):
    config = tiny_model(window_size=[2, 2, 2, 4], first_window_size=[1, 2, 2, 2], last_stage_full=False)
    torch.save(to_published(MaskedAutoencoder(config, 1).state_dict()), tmp_path / "bare.pt")
    start = ["import-neurostorm", str(tmp_path / "bare.pt"), "--out", str(tmp_path / "release")]
    assert cli.main(start) == 2
    assert "the mask token has 32 slots" in capsys.readouterr().err
    stated = ["model.window_size=[2,2,2,4]", "model.first_window_size=[1,2,2,2]", "model.last_stage_full=false"]
    assert cli.main([*start, "--set", *stated]) == 0
    assert fmri_scale.from_pretrained(tmp_path / "release").config == config
    assert cli.main([*start[:3], str(tmp_path / "x"), "--set", "model.windows=3"]) == 2
    assert "model.windows=3" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_weights_are_believed_before_hyper_parameters(tmp_path, capsys):
    case, arguments = read_case(GOLDEN / "encoder_prompt.safetensors")
    wrong = hyper_of(arguments) | {"embed_dim": 24, "img_size": [96, 96, 96, 20]}
    file = lightning(tmp_path / "a.ckpt", published_weights(case), wrong)
    assert cli.main(["import-neurostorm", str(file), "--out", str(tmp_path / "release")]) == 0
    notes = capsys.readouterr().err
    assert "embed_dim=24, but the weights have 6" in notes
    assert "img_size=[96, 96, 96, 20], but the weights have [24, 24, 24, 8]" in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layers.1.downsample.norm.bias"), r"1 missing: layers\.1\.downsample\.norm\.bias"),
        (lambda w: w.update({"layers.9.extra": torch.ones(1)}), r"1 unknown: layers\.9\.extra"),
        (lambda w: w.update({"layers.0.blocks.0.norm1.bias": torch.ones(7)}), r"norm1\.bias \[7\], expected \[6\]"),
        (lambda w: w.pop("patch_embed.fc.weight"), r"not the weights of a NeuroSTORM: no patch_embed\.fc\.weight"),
        (lambda w: w.pop("pos_embeds.2.time_embed"), r"no pos_embeds\.2\.time_embed"),
        (lambda w: w.update({"patch_embed.fc.weight": torch.ones(6, 26)}), "no cube of one channel"),
        (lambda w: w.clear(), "holds no state dict"),
    ],
)
def test_weights_that_are_no_neurostorm_are_named(change, message, tmp_path):
    case, arguments = read_case(GOLDEN / "encoder_prompt.safetensors")
    weights = published_weights(case)
    change(weights)
    hyper = {k: v for k, v in hyper_of(arguments).items() if k != "patch_size"}
    file = lightning(tmp_path / "a.ckpt", weights, hyper)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_neurostorm(file, tmp_path / "release")
    assert "a.ckpt" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@settings(max_examples=150, deadline=None)
@given(data=strategies.data())
def test_weights_of_any_shape_are_taken_or_refused(data):
    """Whatever the shapes, the answer is an architecture or an error that the user can read."""
    shapes = dict(SHAPES)
    for _ in range(data.draw(strategies.integers(1, 3))):
        name = data.draw(strategies.sampled_from(sorted(SHAPES)))
        shapes[name] = tuple(
            data.draw(strategies.lists(strategies.sampled_from([0, 1, 2, 3, 6, 48, 1000]), max_size=6))
        )
    with contextlib.suppress(CheckpointError, ConfigError):
        config = detect(shapes, {}, {"window_size": [2, 2, 2, 4]}).config
        check_model(config)
        from_published({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, config)


def test_a_prefix_twice_is_refused(tmp_path):
    case, arguments = read_case(GOLDEN / "encoder_prompt.safetensors")
    weights = published_weights(case)
    twice = {"norm1": torch.ones(1), "heads": {"patch_embed.fc.bias": torch.ones(6)}}
    file = lightning(tmp_path / "a.ckpt", weights, hyper_of(arguments), **twice)
    with pytest.raises(CheckpointError, match="with and without the prefix"):
        read_published(file)


def test_command_refuses_hostile_files_in_one_line(tmp_path, capsys):
    canary = tmp_path / "canary"
    for kind, data in malicious.live(str(canary)).items():
        path = tmp_path / f"{kind}.ckpt"
        path.write_bytes(malicious.torch_zip(data))
        assert cli.main(["import-neurostorm", str(path), "--out", str(tmp_path / "release")]) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        assert "refused" in error
        path.unlink()
    assert list(tmp_path.iterdir()) == []


def test_an_unusual_name_must_be_allowed(tmp_path):
    case, arguments = read_case(GOLDEN / "encoder_prompt.safetensors")
    hyper = hyper_of(arguments) | {"device": torch.device("cpu"), "logger": torch.nn.Identity}
    file = lightning(tmp_path / "a.ckpt", published_weights(case), hyper)
    with pytest.raises(UnsafePickleError, match=r"torch\.nn\.modules\.linear\.Identity"):
        read_published(file)
    found = read_published(file, allow=["torch.nn.modules.linear.Identity"])
    assert found.facts["hyper_parameters"]["logger"] == "<Named>"


def _shared(depth: int, width: int) -> list:
    """Lists in lists that share what they hold: few objects that stand for width**depth items."""
    value: list = [1] * width
    for _ in range(depth - 1):
        value = [value] * width
    return value


def test_hyper_parameters_that_share_lists_stay_small(tmp_path):
    case, arguments = read_case(GOLDEN / "encoder_prompt.safetensors")
    hyper = {"x": _shared(3, 150), "y": [[1] * 99] * 999}
    hyper |= hyper_of(arguments) | {"embed_dim": _shared(24, 2), "depths": ["\x1b" * 50] * 500}
    found = read_published(lightning(tmp_path / "a.ckpt", published_weights(case), hyper))
    facts = json.dumps(found.facts)
    assert facts.count("1,") < 10_000
    assert len(facts) < 1_000_000
    assert [remark.split("=")[0] for remark in found.detected.remarks] == [
        "hyper-parameter embed_dim",
        "hyper-parameter depths",
    ]
    assert max(map(len, found.detected.remarks)) < 300
    assert not any("\x1b" in remark for remark in found.detected.remarks)


def test_other_lists_do_not_use_up_the_share_of_the_architecture(tmp_path):
    case, arguments = read_case(GOLDEN / "encoder_first_window.safetensors")
    hyper = {f"people{number}": list(range(1000)) for number in range(20)} | hyper_of(arguments)
    found = read_published(lightning(tmp_path / "a.ckpt", published_weights(case), hyper))
    assert found.detected.config.first_window_size == list(arguments["first_window_size"])
    taken = [found.facts["hyper_parameters"][f"people{number}"] for number in range(20)]
    assert sum(isinstance(value, list) for value in taken) == 9


def test_masks_of_training_are_taken_over(tmp_path):
    case, arguments = read_case(GOLDEN / "mae_window.safetensors")
    found = read_published(lightning(tmp_path / "a.ckpt", published_weights(case), hyper_of(arguments)))
    assert (found.masking.strategy, found.masking.ratio, found.masking.loss_on) == ("window", 0.5, "all")
