"""A run becomes a folder that loads back to exactly its weights, or to an error that names what is wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import fmri_scale
from fmri_scale import cli
from fmri_scale.checkpoint import consolidated_state
from fmri_scale.errors import CheckpointError
from fmri_scale.release import checksums, layout, reference
from fmri_scale.release.export import ExportSettings, export
from fmri_scale.release.verify import verify_release
from sharding.mask import brain_mask
from tests.helpers.slim import run_slim
from tests.helpers.tiny_run import CORPUS_ID, tiny_config, tiny_model, weights_of, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small-run"
    write_run(folder, step=10, seed=5)
    write_run(folder, step=30, seed=3)
    return folder


@pytest.fixture(scope="module")
def release(run, tmp_path_factory) -> Path:
    return export(run, tmp_path_factory.mktemp("out") / "release", ExportSettings(licence="cc-by-4.0"))


@pytest.fixture
def copy(release, tmp_path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "copy"))


def reseal(folder: Path) -> None:
    """Make checksums fit again, as someone who edits a release on purpose would."""
    (folder / layout.CHECKSUMS).unlink()
    checksums.seal(folder)


def test_release_holds_the_weights_of_the_newest_checkpoint(run, release):
    model = fmri_scale.from_pretrained(release)
    trained = consolidated_state(run)
    assert trained.keys() == model.model.state_dict().keys()
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, trained[name]), name
        assert torch.equal(value, weights_of(tiny_config(), seed=3)[name]), name
    assert not model.training
    assert model.config == tiny_model()
    assert (model.mask == brain_mask()).all()
    assert model.preprocessing.normalisation == "run_z"
    assert model.preprocessing.settings.target_tr == 0.8


def test_one_checkpoint_can_be_named(run, tmp_path):
    export(run / "checkpoints" / "step_00000010", tmp_path / "older")
    model = fmri_scale.from_pretrained(tmp_path / "older")
    assert model.record["steps"] == 10
    assert torch.equal(
        model.model.state_dict()["decoder.head.weight"], weights_of(tiny_config(), 5)["decoder.head.weight"]
    )


def test_features_are_the_mean_of_the_latent_map_and_reconstruction_has_the_clip_shape(release):
    model = fmri_scale.from_pretrained(release)
    clip = torch.randn(2, 1, 96, 96, 96, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latent, vector = model(clip), model.features(clip)
        rebuilt = model.reconstruct(clip, ratio=0.25)
    assert latent.shape == (2, 16, 2, 2, 2, 6)
    assert torch.allclose(vector, latent.mean((2, 3, 4, 5)), atol=1e-6)
    assert vector.shape == (2, model.width)
    assert rebuilt.volume.shape == clip.shape
    assert rebuilt.hidden.shape == clip.squeeze(1).shape
    assert rebuilt.hidden.float().mean().item() == pytest.approx(0.25, abs=1e-6)


def test_features_do_not_depend_on_threads_or_on_how_gradients_are_off(release):
    """Worker threads of the kernels take over inference mode; it used to be an error on more than one core."""
    model = fmri_scale.from_pretrained(release)
    clip, before = reference.reference_clip(model, 6), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for off in (torch.inference_mode, torch.no_grad):
                with off():
                    found.append(model.features(clip).clone())
    finally:
        torch.set_num_threads(before)
    assert all(torch.allclose(vector, found[0], rtol=1e-5, atol=1e-6) for vector in found)


def test_encoder_alone_gives_the_same_features_and_no_reconstruction(run, release, tmp_path):
    export(run, tmp_path / "encoder", ExportSettings(contents="encoder"))
    whole, encoder = fmri_scale.from_pretrained(release), fmri_scale.from_pretrained(tmp_path / "encoder")
    clip = reference.reference_clip(whole, 5)
    assert torch.equal(whole.features(clip), encoder.features(clip))
    assert all(name.startswith("backbone.") for name in load_file(tmp_path / "encoder" / layout.WEIGHTS))
    with pytest.raises(CheckpointError, match="encoder alone"):
        encoder.reconstruct(clip)


def test_bf16_weights_are_the_rounded_ones(run, tmp_path):
    export(run, tmp_path / "half", ExportSettings(dtype="bf16"))
    model = fmri_scale.from_pretrained(tmp_path / "half")
    for name, value in weights_of(tiny_config(), 3).items():
        assert torch.equal(model.model.state_dict()[name], value.bfloat16().float()), name


@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory) -> Path:
    """A run that kept an average of its weights; here they are those of another seed."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    config = tiny_config()
    config.optim.ema_decay = 0.99
    write_run(folder, config, average=weights_of(config, seed=8))
    return folder


@pytest.mark.parametrize(("choice", "seed", "told"), [("auto", 8, "ema"), ("ema", 8, "ema"), ("raw", 3, "raw")])
def test_averaged_weights_are_released_where_there_are_any_unless_told(averaged_run, tmp_path, choice, seed, told):
    assert cli.main(["export", str(averaged_run), "--out", str(tmp_path / "out"), "--weights", choice]) == 0
    model = fmri_scale.from_pretrained(tmp_path / "out")
    for name, value in weights_of(tiny_config(), seed).items():
        assert torch.equal(model.model.state_dict()[name], value), name
    assert model.record["weights"] == told
    row = {"ema": "| Weights | moving average, decay 0.99 |", "raw": "| Weights | those of the last step |"}[told]
    assert row in (tmp_path / "out" / layout.CARD).read_text()


def test_an_average_that_was_not_kept_is_asked_for_in_vain(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--out", str(tmp_path / "out"), "--weights", "ema"]) == 2
    assert "keeps no average of the weights; train with optim.ema_decay" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_byte_counts(copy):
    """Flip one byte of every file, in its middle and at its ends: each is refused by name."""
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match=re.escape(str(copy))):
                fmri_scale.from_pretrained(copy)
        path.write_bytes(whole)
    assert fmri_scale.from_pretrained(copy).identity


def test_every_byte_of_the_checksums_counts(copy):
    path = copy / layout.CHECKSUMS
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            checksums.verify(copy)


@pytest.mark.parametrize("name", [*layout.REQUIRED, layout.CHECKSUMS])
def test_an_absent_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(name)):
        fmri_scale.from_pretrained(copy)


def test_a_strange_file_is_named(copy):
    (copy / "model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.bin: is not part of the release"):
        fmri_scale.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.norm.bias"), r"1 missing: decoder\.norm\.bias"),
        (lambda s: s.update(extra=torch.ones(1)), "1 unexpected: extra"),
        (lambda s: s.update({"decoder.norm.bias": torch.ones(9)}), r"decoder\.norm\.bias \[9\], expected \[8\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(copy, change, message):
    state = load_file(copy / layout.WEIGHTS)
    change(state)
    save_file(state, copy / layout.WEIGHTS)
    reseal(copy)
    with pytest.raises(CheckpointError, match=message):
        fmri_scale.from_pretrained(copy)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (layout.CONFIG, lambda c: c["model"].update(heads=3), "heads"),
        (layout.CONFIG, lambda c: c["model"].update(embed_dim=0), r"model\.embed_dim=0"),
        (layout.CONFIG, lambda c: c.update(contents="all"), "contents 'all'"),
        (layout.CONFIG, lambda c: c["model"].update(num_frames=7), "another shape|weights are not those"),
        (layout.PREPROCESSING, lambda c: c["mask"].update(sha256="0" * 64), "not the mask"),
        (layout.PREPROCESSING, lambda c: c.update(normalisation="minmax"), "'minmax'"),
        (layout.PREPROCESSING, lambda c: c["settings"].update(target_tr=-1), "target TR"),
        (layout.PREPROCESSING, lambda c: c["grid"]["affine"][0].__setitem__(0, -2.0), "affine"),
        (layout.PREPROCESSING, lambda c: c.pop("clip"), "clip"),
    ],
)
def test_facts_that_contradict_are_refused(copy, file, change, message):
    content = json.loads((copy / file).read_text())
    change(content)
    layout.write_json(copy / file, content)
    reseal(copy)
    with pytest.raises(CheckpointError, match=message):
        fmri_scale.from_pretrained(copy)


def test_another_mask_is_refused(copy):
    from sharding.mask_image import mask_bytes

    (copy / layout.MASK).write_bytes(mask_bytes(brain_mask(dilated=False)))
    reseal(copy)
    with pytest.raises(CheckpointError, match=r"mask\.nii\.gz: not the mask"):
        fmri_scale.from_pretrained(copy)


def test_verify_runs_the_model_and_compares(release, copy):
    assert any("relative deviation 0.0e+00" in line or "e-0" in line for line in verify_release(release))
    content = json.loads((copy / layout.REFERENCE).read_text())
    content["features"][0] += 0.5
    layout.write_json(copy / layout.REFERENCE, content)
    reseal(copy)
    with pytest.raises(CheckpointError, match="deviate from the stored ones"):
        verify_release(copy)


def test_training_record_is_taken_from_the_run_and_names_no_path(release):
    text = (release / layout.TRAINING).read_text()
    record = json.loads(text)
    assert record["steps"] == 30
    assert record["weights"] == "raw"
    assert record["frames"] == 30 * 8 * 6
    assert record["data"]["corpus_id"] == CORPUS_ID
    assert record["data"]["datasets"] == {
        "rest-one": {"samples": 3, "frames": 300},
        "task": {"samples": 1, "frames": 100},
    }
    assert record["loss_curve"][0] == [1, 1.0]
    assert record["loss_curve"][-1][0] == 30
    assert record["throughput"] == {"frames_per_s_median": 115.5}
    assert record["software"]["git"] == "abc"
    assert "/somewhere" not in text
    assert str(release.parent) not in text


def test_further_corpora_are_told(tmp_path):
    config = tiny_config()
    config.data.more_corpora = ["/gone/since/second"]
    write_run(tmp_path / "run", config)
    export(tmp_path / "run", tmp_path / "release")
    record = json.loads((tmp_path / "release" / layout.TRAINING).read_text())
    assert record["more_data"] == [{"name": "second"}]
    assert record["config"]["data"]["more_corpora"] == ["second"]
    assert "A further corpus `second`" in (tmp_path / "release" / layout.CARD).read_text()


def test_energy_is_told_where_it_was_counted(run, tmp_path):
    from fmri_scale.checkpoint import newest, read_config, read_state
    from fmri_scale.release.record import read_corpus, training_record

    checkpoint = newest(run)
    state = read_state(checkpoint.path)
    state.metrics = {"energy_j": 7.2e6}
    record = training_record(checkpoint, read_config(checkpoint.path), state, read_corpus(checkpoint))
    assert record["energy"] == {"gpu_kwh": 2.0}


def test_long_loss_curves_are_thinned_by_averages():
    from fmri_scale.release.record import CURVE_POINTS, loss_curve

    curve = loss_curve([{"step": i, "loss": float(i)} for i in range(1, 4001)])
    assert len(curve) == CURVE_POINTS
    assert curve[0] == [10, 5.5]
    assert curve[-1] == [4000, 3995.5]


def test_every_number_of_the_card_stands_in_a_file(release):
    _, front, body = (release / layout.CARD).read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "cc-by-4.0"
    assert facts["pipeline_tag"] == "feature-extraction"
    files = "".join((release / name).read_text() for name in (layout.CONFIG, layout.PREPROCESSING, layout.TRAINING))
    known = set(re.findall(r"\d+(?:\.\d+)?", files)) | {str(16)}  # the feature width is a product: 8 * 2
    prose = re.sub(
        r"`[^`]*`|```.*?```|sub-01\S+|sha256|MNI152|4D|NLin6Asym|int8|fmri_scale [\d.]+", "", body, flags=re.S
    )
    numbers = set(re.findall(r"\d+(?:\.\d+)?", prose.replace(",", "")))
    assert numbers, "the card names no number at all"
    assert numbers <= known | {"0"}, numbers - known


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    config = tiny_config()
    write_run(tmp_path / "run", config)
    state = {f"model.{k}": v for k, v in weights_of(config).items()}
    state["model.decoder.head.bias"][0] = float("nan")
    engine = tmp_path / "run" / "checkpoints" / "step_00000030" / "engine" / "mp_rank_00_model_states.pt"
    torch.save({"module": state}, engine)
    (engine.parents[1] / "manifest.json").unlink()
    from fmri_scale.checkpoint import manifest

    files = [p for p in engine.parents[1].rglob("*") if p.is_file()]
    manifest.write(
        engine.parents[1], 30, {p.relative_to(engine.parents[1]).as_posix(): manifest.describe(p) for p in files}
    )
    with pytest.raises(CheckpointError, match=r"not finite: decoder\.head\.bias"):
        export(tmp_path / "run", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ["missing", "a file", "an empty folder", "a release", "a broken checkpoint"])
def test_what_is_not_a_run_is_refused_in_one_line(kind, run, release, tmp_path, capsys):
    source = tmp_path / "source"
    if kind == "a file":
        source.write_text("x")
    elif kind == "an empty folder":
        source.mkdir()
    elif kind == "a release":
        source = release
    elif kind == "a broken checkpoint":
        shutil.copytree(run, source)
        for state in source.glob("checkpoints/*/state.json"):
            state.write_text("{}")
    assert cli.main(["export", str(source), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert str(source) in error
    assert not (tmp_path / "out").exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"source"}


def test_a_folder_with_something_in_it_is_kept(run, release, copy, tmp_path, capsys):
    assert cli.main(["export", str(run), "--out", str(copy)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    assert cli.main(["export", str(run), "--out", str(mine), "--overwrite"]) == 2
    assert "not a release" in capsys.readouterr().err
    assert (mine / "thesis.tex").read_text() == "x"
    assert cli.main(["export", str(run), "--out", str(copy), "--overwrite", "--dtype", "bf16"]) == 0
    assert fmri_scale.from_pretrained(copy).identity != fmri_scale.from_pretrained(release).identity
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "mine"]


def test_export_repeats_to_the_byte(run, release, tmp_path):
    export(run, tmp_path / "again", ExportSettings(licence="cc-by-4.0"))
    for path in release.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_loading_needs_the_slim_core_only(release):
    """In a fresh environment without any extra, a release loads, verifies and gives features."""
    body = """
import sys
import fmri_scale
from fmri_scale.release.reference import reference_clip
from fmri_scale.release.verify import verify_release
model = fmri_scale.from_pretrained(sys.argv[1])
print(model.features(reference_clip(model, 3)).shape, len(verify_release(sys.argv[1])))
"""
    assert "torch.Size([1, 16]) 5" in run_slim(body, release)


def test_a_folder_that_is_no_release_is_refused(tmp_path, run):
    with pytest.raises(CheckpointError, match="no such folder"):
        fmri_scale.from_pretrained(tmp_path / "none" / "at" / "all")
    with pytest.raises(CheckpointError, match="a training run, not a release"):
        fmri_scale.from_pretrained(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"checksums\.json"):
        fmri_scale.from_pretrained(tmp_path / "empty")
