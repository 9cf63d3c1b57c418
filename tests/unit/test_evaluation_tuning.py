"""Tuning for a task: what trains and what stays, the same after a kill, and nothing learnt from who is held out."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fmri_scale.cli import main
from fmri_scale.config import DataConfig, ModelConfig, load_config
from fmri_scale.errors import CheckpointError, ConfigError, DataError, TrainingError
from fmri_scale.evaluation.probes import Problem
from fmri_scale.evaluation.sealed import FIT, TEST, VAL, Part
from fmri_scale.evaluation.tasks import load_task
from fmri_scale.evaluation.tasks.run import run_task
from fmri_scale.evaluation.tuning import loop
from fmri_scale.evaluation.tuning.adapt import adapt, share
from fmri_scale.evaluation.tuning.clips import ClipRows, CorpusClips, corpus_clips
from fmri_scale.evaluation.tuning.settings import TuningConfig
from fmri_scale.evaluation.tuning.tuner import ModelTuner, load_tuned
from fmri_scale.models import Backbone, init_weights
from fmri_scale.models.lora import PROJECTIONS, add_lora
from fmri_scale.models.mixer import Mixer
from fmri_scale.models.prompts import add_prompts
from fmri_scale.release import Pretrained, from_pretrained
from fmri_scale.release.export import export
from tests.helpers.corpora import Segment, small_mask, write_corpus
from tests.helpers.tiny_models import clips, tiny
from tests.helpers.tiny_run import corpus_facts, tiny_config, write_run

PEOPLE = 20
CLASSES = Problem("classification", ("a", "b"))
SHAPE = ModelConfig(
    image_size=[24, 24, 24],
    patch_size=[6, 6, 6, 1],
    num_frames=2,
    embed_dim=4,
    depths=[1, 1],
    window_size=[2, 2, 2, 2],
    first_window_size=[2, 2, 2, 2],
    state_dim=4,
)
QUICK = TuningConfig(
    prompt_len=3, lora_rank=2, prompt_lr=[1e-2], lora_lr=[1e-2], full_lr=[1e-3], head_lr=3e-2, epochs=3, batch_size=4
)


def _codes(number: int, q: np.ndarray) -> np.ndarray:
    """People of odd number have higher values in the first half of the voxels."""
    out = (q // 4).astype(np.int8)
    out[:, : q.shape[1] // 2] += np.int8(60 * (number % 2))
    return out


def _write_corpus(folder: Path, effect: Callable[[int, np.ndarray], np.ndarray] = _codes) -> Path:
    write_corpus(folder, [Segment(4)] * PEOPLE, num_voxels=300, effect=effect)
    meta = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps({**corpus_facts(small_mask(300)), **meta}))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_corpus(tmp_path_factory.mktemp("tuning") / "corpus")


@pytest.fixture(scope="module")
def release(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    config = dataclasses.replace(
        tiny_config(SHAPE), data=DataConfig(corpus="/somewhere/private/corpus", normalisation="voxel_z")
    )
    write_run(folder / "run", config, corpus=corpus)
    return export(folder / "run", folder / "release")


@pytest.fixture(scope="module")
def table(corpus: Path) -> CorpusClips:
    """The clips of the corpus; two a person, in the order of the people's names."""
    model = Pretrained(SHAPE, "encoder")
    return _clips(corpus, model)


def _clips(corpus: Path, model: Pretrained) -> CorpusClips:
    from fmri_scale.release.preprocessing import Preprocessing
    from sharding.prepare import PreprocessingSettings

    model.preprocessing = Preprocessing.of(PreprocessingSettings(), "voxel_z", 2, small_mask(300))
    return corpus_clips(model, str(corpus))


def _part(table: CorpusClips, people: range, side: str = FIT) -> Part:
    rows = np.flatnonzero(np.isin(table.run, list(people)))
    unit = table.run[rows]
    return Part(side, ClipRows(table, rows), unit % 2, unit)


def _tuner(release: Path, folder: Path, method: str = "prompt", **changes: object) -> ModelTuner:
    config = dataclasses.replace(QUICK, **changes)
    return ModelTuner(f"model ({method})", method, config, lambda seed: str(release), folder)


def _tuned(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.rglob("tuned.safetensors")
    return load_file(path)


def _tune(tuner: ModelTuner, table: CorpusClips, seed: int = 0):
    train, val = _part(table, range(8)), _part(table, range(8, 14), VAL)
    return tuner.tune("holdout", [(train, val)], train, CLASSES, seed)


# --- what is trained -----------------------------------------------------------------------------------------------


def test_fifty_prompts_a_block_of_the_base_model_are_82_800_parameters() -> None:
    config = load_config([Path(__file__).parents[2] / "configs" / "model" / "base.yaml"]).model
    model = Pretrained(config, "encoder")
    text = str(share(adapt(model, "prompt", TuningConfig(), 2, 0), "prompt"))
    assert text.startswith("82,800 prompt parameters and 578 of the head are trained, 5,173,020 are frozen: 1.59%")


def test_added_prompts_are_those_of_a_model_built_with_them() -> None:
    built, added = Backbone(tiny(prompt_len=5)), Backbone(tiny())
    wrapped = torch.nn.ModuleDict({"backbone": built}), torch.nn.ModuleDict({"backbone": added})
    for model in wrapped:
        init_weights(model, 7)
    assert len(add_prompts(added, 5, 7)) == 3
    volume = clips(tiny(), 2)
    assert torch.equal(built(volume), added(volume))
    with pytest.raises(ValueError, match="has 5 prompts; expected 6"):
        add_prompts(added, 6, 7)


def test_lora_begins_at_the_pretrained_model_and_adds_a_low_rank_product() -> None:
    backbone, volume = Backbone(tiny()).double(), clips(tiny(), 2).double()
    init_weights(backbone, 0)
    plain = {name: value.clone() for name, value in backbone.state_dict().items()}
    before = backbone(volume)
    updates = add_lora(backbone, 2, 6.0, 0)
    assert torch.equal(backbone(volume), before)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in updates:
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    merged = Backbone(tiny()).double()
    for name, mixer in backbone.named_modules():
        for projection in PROJECTIONS if isinstance(mixer, Mixer) else ():
            linear = getattr(mixer, projection)
            update = linear.parametrizations.weight[0]
            rank = min(2, *linear.weight.shape)
            assert update.up.shape[1] == rank
            plain[f"{name}.{projection}.weight"] += 6.0 / rank * update.up @ update.down
    merged.load_state_dict(plain)
    torch.testing.assert_close(backbone(volume), merged(volume))
    assert not torch.allclose(backbone(volume), before, atol=1e-3)


@pytest.mark.parametrize("method", ["prompt", "lora", "full"])
def test_only_what_is_tuned_and_the_head_change(method: str, release: Path, table: CorpusClips, tmp_path: Path) -> None:
    before = from_pretrained(release)
    _tune(_tuner(release, tmp_path, method), table)
    saved = _tuned(tmp_path)
    tuned, _ = load_tuned(from_pretrained(release), next(tmp_path.rglob("tuned.json")).parent)
    own = {"prompt": ".prompt", "lora": ".parametrizations.weight.0."}.get(method, "backbone.")
    statistics = {"feature_mean", "feature_scale"}
    assert {name for name in saved if own not in name} == {"head.weight", "head.bias", *statistics}
    started = adapt(from_pretrained(release), method, QUICK, 2, 0).state_dict()
    for name, value in tuned.state_dict().items():
        moved = not torch.equal(value, started[name])
        assert moved == (name in saved), name
    pretrained = {f"backbone.{name}": value for name, value in before.backbone.state_dict().items()}
    if method != "full":
        for name, value in tuned.state_dict().items():
            original = name.replace(".parametrizations.weight.original", ".weight")
            assert original not in pretrained or torch.equal(value, pretrained[original]), name


def test_a_frozen_backbone_stays_the_pretrained_one_in_training(release: Path) -> None:
    """Dropout of the release acts in full fine-tuning, never in a backbone that is frozen."""
    for method, active in (("prompt", False), ("lora", False), ("full", True)):
        tuned = adapt(from_pretrained(release), method, QUICK, 2, 0).train()
        assert tuned.backbone.training == active
        assert tuned.head.training


# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt", "full"])
def test_a_killed_training_goes_on_to_the_same_bytes(
    method: str, release: Path, table: CorpusClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tune(_tuner(release, tmp_path / "whole", method), table)
    save, calls = loop.save_state, []

    def die_after_two(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", die_after_two)
    with pytest.raises(KeyboardInterrupt):
        _tune(_tuner(release, tmp_path / "killed", method), table)
    assert not list((tmp_path / "killed").rglob("tuned.json"))
    _tune(_tuner(release, tmp_path / "killed", method), table)
    assert len(calls) == 3  # the third of three epochs alone was left
    whole, killed = ((tmp_path / name) for name in ("whole", "killed"))
    for file in ("tuned.safetensors", "tuned.json"):
        (one,), (other,) = whole.rglob(file), killed.rglob(file)
        assert one.read_bytes() == other.read_bytes()
    assert not list(killed.rglob("state.safetensors"))


def test_a_finished_training_is_not_done_again_and_other_settings_are(
    release: Path, table: CorpusClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _tune(_tuner(release, tmp_path), table)
    begun = []
    train = loop._run_epoch
    monkeypatch.setattr(loop, "_run_epoch", lambda *arguments: begun.append(1) or train(*arguments))
    again = _tune(_tuner(release, tmp_path), table)
    assert not begun
    np.testing.assert_array_equal(first.val_scores, again.val_scores)
    _tune(_tuner(release, tmp_path, weight_decay=0.5), table)
    assert len(begun) == 3
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        first.fitted.scores(_part(table, range(8)).inputs)


def test_the_seed_decides_and_micro_batches_do_not(release: Path, table: CorpusClips, tmp_path: Path) -> None:
    chosen = {}
    for name, seed, micro in (("one", 0, 1), ("three", 0, 3), ("other", 1, 1)):
        chosen[name] = _tune(_tuner(release, tmp_path / name, micro_batch=micro), table, seed)
    one, three, other = (_tuned(tmp_path / name) for name in chosen)
    for name, value in one.items():
        torch.testing.assert_close(value, three[name], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(one["head.weight"], other["head.weight"], atol=1e-2)


def test_training_stops_by_validation_and_keeps_the_best_epoch(
    release: Path, table: CorpusClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.9, 0.3, 0.5, 0.4, 0.2])
    heads = []

    def scripted(model: Pretrained, tuned: torch.nn.Module, *rest: object) -> float:
        heads.append(tuned.head.weight.detach().clone())
        return next(losses)

    monkeypatch.setattr(loop, "validation", scripted)
    chosen = _tune(_tuner(release, tmp_path, epochs=10, patience=2), table)
    assert chosen.setting == "rate 0.01, 2 epochs"
    assert len(heads) == 4  # two epochs without a better one
    assert torch.equal(_tuned(tmp_path)["head.weight"], heads[1])


def test_the_rate_with_the_least_validation_loss_is_taken(release: Path, table: CorpusClips, tmp_path: Path) -> None:
    chosen = _tune(_tuner(release, tmp_path, prompt_lr=[1e-2, 1e-9], head_lr=1e-9), table)
    assert len(chosen.losses) == 2
    assert chosen.losses.index(min(chosen.losses)) == 0
    assert chosen.setting.startswith("rate 0.01")


def test_folds_are_fitted_again_on_all_their_units(release: Path, table: CorpusClips, tmp_path: Path) -> None:
    train, val, fit = _part(table, range(8)), _part(table, range(8, 12), VAL), _part(table, range(12))
    chosen = _tuner(release, tmp_path).tune("a/b", [(train, val)], fit, CLASSES, 0)
    (facts,) = [json.loads(path.read_text()) for path in tmp_path.rglob("fit/tuned.json")]
    assert f", {facts['epochs']} epoch" in chosen.setting
    assert len(facts["history"]) == facts["epochs"]
    assert "val_loss" not in facts["history"][0]


def test_a_loss_that_is_not_finite_ends_with_the_rate_in_the_message(
    release: Path, table: CorpusClips, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"not finite with a rate of 1e\+30"):
        _tune(_tuner(release, tmp_path, "full", full_lr=[1e30], head_lr=1e30), table)


def test_a_rate_that_breaks_down_leaves_the_others(release: Path, table: CorpusClips, tmp_path: Path) -> None:
    chosen = _tune(_tuner(release, tmp_path, "full", full_lr=[1e30, 1e-3], epochs=1), table)
    assert chosen.setting == "rate 0.001, 1 epoch"


def test_a_tuned_model_of_another_release_or_damaged_is_refused(
    release: Path, table: CorpusClips, tmp_path: Path
) -> None:
    _tune(_tuner(release, tmp_path), table)
    folder = next(tmp_path.rglob("tuned.json")).parent
    other = from_pretrained(release)
    other.identity = "f" * 64
    with pytest.raises(CheckpointError, match="tuned from release"):
        load_tuned(other, folder)
    data = bytearray((folder / "tuned.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "tuned.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="does not fit the sha256"):
        load_tuned(from_pretrained(release), folder)
    with pytest.raises(CheckpointError, match="holds no tuned model"):
        load_tuned(from_pretrained(release), tmp_path)


# --- no leakage ----------------------------------------------------------------------------------------------------


def test_test_rows_are_refused_by_tuning(release: Path, table: CorpusClips, tmp_path: Path) -> None:
    train, val, test = (_part(table, range(k, k + 6), side) for k, side in ((0, FIT), (6, VAL), (12, TEST)))
    tuner = _tuner(release, tmp_path)
    for choices, fit in (([(test, val)], train), ([(train, test)], train), ([(train, val)], test)):
        with pytest.raises(RuntimeError, match="must not be fitted"):
            tuner.tune("holdout", choices, fit, CLASSES, 0)


def test_what_is_tuned_depends_on_training_and_validation_people_only(
    release: Path, corpus: Path, table: CorpusClips, tmp_path: Path
) -> None:
    """Everybody else's signal is replaced by an absurd one: statistics and parameters stay the same bit for bit."""

    def absurd(number: int, q: np.ndarray) -> np.ndarray:
        return _codes(number, q) if number < 14 else np.full_like(q, 127)

    changed = _clips(_write_corpus(tmp_path / "corpus", absurd), Pretrained(SHAPE, "encoder"))
    _tune(_tuner(release, tmp_path / "one"), table)
    _tune(_tuner(release, tmp_path / "other"), changed)
    (one,), (other,) = ((tmp_path / name).rglob("tuned.safetensors") for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_validation_people_decide_when_to_stop_and_nothing_else(
    release: Path, table: CorpusClips, tmp_path: Path
) -> None:
    """With one epoch there is nothing to choose: other validation people leave the same parameters."""
    train, vals = _part(table, range(8)), (_part(table, range(8, 14), VAL), _part(table, range(14, 20), VAL))
    for name, val in zip("ab", vals, strict=True):
        _tuner(release, tmp_path / name, epochs=1).tune("holdout", [(train, val)], train, CLASSES, 0)
    for name, value in _tuned(tmp_path / "a").items():
        assert torch.equal(value, _tuned(tmp_path / "b")[name]), name


# --- as methods of a task ------------------------------------------------------------------------------------------


def _task(folder: Path, release: Path, corpus: Path, *overrides: str) -> list[str]:
    rows = "".join(f"{i:05d}\t{'ab'[i % 2]}\t{20 + 10 * (i % 2)}\tf{i // 2}\n" for i in range(PEOPLE))
    (folder / "people.tsv").write_text(f"subject\tgroup\tage\tfamily\n{rows}")
    task = {
        "name": "trial",
        "target": {"table": str(folder / "people.tsv"), "column": "group"},
        "tuning": {**dataclasses.asdict(QUICK), "releases": {"tiny": str(release)}, "corpus": str(corpus)},
        "scoring": {"seeds": [0], "draws": 200},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return [str(folder / "task.yaml"), *overrides]


@pytest.fixture(scope="module")
def finished(release: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A task with every method, run by the command; its folder and what was printed."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("task")
    items = _task(folder, release, corpus, "tuning.methods=[prompt,lora,full,scratch]", "tuning.epochs=4")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["evaluate", *items, "--out", str(folder / "out"), "--final"]) == 0
    return folder / "out", printed.getvalue()


def test_one_command_tunes_beside_the_baseline(finished: tuple[Path, str]) -> None:
    out, printed = finished
    scores = pd.read_csv(out / "results.csv").set_index(["method", "metric"])
    order = list(dict.fromkeys(scores.index.get_level_values(0)))
    assert order == ["tiny (prompt)", "tiny (lora)", "tiny (full)", "tiny (scratch)", "majority"]
    for method in order[:3]:
        assert scores.loc[(method, "auroc"), "value"] > 0.9
        assert f"| {method} |" in printed
    predictions = pd.read_parquet(out / "predictions.parquet")
    assert set(predictions["side"]) == {"test"}
    assert set(predictions["method"]) == set(order)


def test_the_report_says_what_share_of_the_model_was_trained(finished: tuple[Path, str]) -> None:
    out, _ = finished
    prompts = 3 * (4 + 8)
    assert (
        f"tiny (prompt): {prompts} prompt parameters and 18 of the head are trained" in (out / "report.md").read_text()
    )
    settings = {row["method"]: row["setting"] for row in json.loads((out / "settings.json").read_text())}
    assert settings["tiny (lora)"].startswith("rate 0.01, ")


def test_saved_models_give_the_saved_predictions(finished: tuple[Path, str], release: Path, corpus: Path) -> None:
    out, _ = finished
    folder = next((out / "tuned").glob("tiny*prompt*")) / "seed-0" / "holdout" / "lr-0.01"
    tuned, target = load_tuned(from_pretrained(release), folder)
    model = from_pretrained(release)
    table = corpus_clips(model, str(corpus))
    predictions = pd.read_parquet(out / "predictions.parquet").query("method == 'tiny (prompt)'")
    names = table.described().entities.names("subject")
    assert len(predictions) == 4
    for unit, probability in zip(predictions["unit"], predictions["p(b)"], strict=True):
        inputs = ClipRows(table, np.flatnonzero(names == unit))
        scores = target.scores(loop.predict(model, tuned, inputs, QUICK)).mean(axis=0)
        assert scores[1] == pytest.approx(probability, abs=1e-6)


def test_clips_of_the_test_set_are_not_read_before_the_final_evaluation(
    release: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    volumes = CorpusClips.volumes

    def recorded(self: CorpusClips, model: Pretrained, rows: np.ndarray) -> torch.Tensor:
        read.update(self.described().entities.names("subject")[rows])
        return volumes(self, model, rows)

    monkeypatch.setattr(CorpusClips, "volumes", recorded)
    items = ["tuning.methods=[prompt]", "tuning.epochs=1", "target.family=[family]"]
    task = load_task(_task(tmp_path, release, corpus), items)
    first = run_task(task, tmp_path / "out", final=False)
    (split,) = first.splits.values()
    test = {f"phantom/sub-{i:05d}" for i in range(PEOPLE)} - read
    assert not (tmp_path / "out" / "test_openings.jsonl").exists()
    seen = {f"phantom/sub-{i:05d}" for group in split.folds[0].test for i in _family(group)}
    assert seen == test
    tuned = next((tmp_path / "out").rglob("tuned.safetensors")).read_bytes()
    read.clear()
    final = run_task(task, tmp_path / "out", final=True)
    assert test <= read
    assert set(final.predictions["unit"]) == test
    assert next((tmp_path / "out").rglob("tuned.safetensors")).read_bytes() == tuned  # nothing was trained again


def _family(group: str) -> tuple[int, int]:
    number = int(group[-5:])
    return number - number % 2, number - number % 2 + 1


def test_values_are_regressed_in_their_own_units(release: Path, corpus: Path, tmp_path: Path) -> None:
    items = ["kind=regression", "target.column=age", "tuning.methods=[full]", "tuning.epochs=6"]
    scores = run_task(load_task(_task(tmp_path, release, corpus), items), tmp_path / "out", final=True).scores
    assert scores.get("tiny (full)", "mae").interval.value < 3.0 < scores.get("mean", "mae").interval.value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuning.methods=[prompts]", "tuning.methods='prompts': expected some of prompt, lora, full, scratch"),
        ("tuning.prompt_lr=[]", "tuning.prompt_lr"),
        ("tuning.full_lr=[-1.0]", "tuning.full_lr"),
        ("tuning.prompt_len=0", "tuning.prompt_len=0: expected 1 or more"),
        ("tuning.corpus=''", "tuning.corpus: give the corpus"),
    ],
)
def test_settings_that_make_no_sense_say_which(
    release: Path, corpus: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(_task(tmp_path, release, corpus), [override])


def test_images_instead_of_a_corpus_are_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus; tuning reads one"):
        run_task(load_task(_task(tmp_path, release, tmp_path / "nowhere")), tmp_path / "out", final=False)
