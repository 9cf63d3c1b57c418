"""An experiment does each step once, goes on after a kill to the same report, and says where arms do not compare."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fmri_scale.cli import main
from fmri_scale.config import load_config
from fmri_scale.errors import CheckpointError, ConfigError, LaunchError
from fmri_scale.evaluation.experiment import arms as arms_module
from fmri_scale.evaluation.experiment import run as run_module
from fmri_scale.evaluation.experiment.arms import Arm, arms_of, resolve, summary
from fmri_scale.evaluation.experiment.report import fraction_warnings
from fmri_scale.evaluation.experiment.run import run_experiment
from fmri_scale.evaluation.experiment.schema import ExperimentConfig, load_experiment, source_settings
from fmri_scale.evaluation.experiment.steps import digest, once
from sharding.phantom_truth import TruthSettings
from tests.helpers.corpora import Segment, small_mask, write_corpus
from tests.helpers.tiny_run import corpus_facts, write_run

SHIPPED = Path(__file__).parents[2] / "configs" / "experiments"
MODEL = [
    "model.image_size=[24,24,24]", "model.patch_size=[6,6,6,1]", "model.num_frames=4", "model.embed_dim=4",
    "model.depths=[1,1]", "model.window_size=[2,2,2,2]", "model.first_window_size=[2,2,2,2]", "model.state_dim=4",
]  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A file with two arms, two seeds and one task on a corpus of 24 people of random codes."""
    write_corpus(tmp_path / "corpus", [Segment(8)] * 24, num_voxels=300)
    meta = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps({**corpus_facts(small_mask(300)), **meta}))
    rows = "".join(f"{i:05d}\t{'ab'[i % 2]}\n" for i in range(24))
    (tmp_path / "people.tsv").write_text(f"subject\tgroup\n{rows}")
    content = {
        "name": "trial",
        "corpora": {"main": {"source": "corpus", "path": str(tmp_path / "corpus")}},
        "table": str(tmp_path / "people.tsv"),
        "pretrain": [*MODEL, "data.corpus={corpus.main}", "optim.steps=3"],
        "arms": {"token": ["mask.strategy=token"], "tube": ["mask.strategy=tube"]},
        "seeds": [0, 1],
        "tasks": {
            "group": {
                "corpus": "main",
                "items": ["target.table={table}", "target.column=group", "probes=[linear]", "scoring.draws=100"],
            }
        },
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "experiment.yaml"


class Trainer:
    """Stands in for the training process: writes the run that it would leave, and counts."""

    def __init__(self) -> None:
        self.trained: list[str] = []

    def __call__(self, arm: Arm, launcher: object) -> None:
        files, overrides = arms_module._divide(arm.items)
        config = load_config(files, overrides)
        write_run(arm.run_dir, config, step=3, seed=arm.seed + 10 * len(arm.name), corpus=Path(config.data.corpus))
        rows = [{"step": i, "loss": 1.0 / i, "masked_fraction_brain": 0.5} for i in (1, 2, 3)]
        (arm.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.trained.append(f"{arm.name}-{arm.seed}")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(arms_module, "train", made)
    return made


RESULTS = ("results.csv", "arms.csv", "report.html")


def test_a_killed_experiment_goes_on_to_the_same_report(
    experiment: Path, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each kind of step in turn, then finished: nothing is trained twice, the report is the same."""
    config = load_experiment([experiment], ["seeds=[0]"])
    run_experiment(config, tmp_path / "whole")
    assert trainer.trained == ["token-0", "tube-0"]
    trainer.trained.clear()
    for module, name in ((arms_module, "_export"), (arms_module, "_extract"), (run_module, "_evaluate")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, _killed)
            with pytest.raises(KeyboardInterrupt):
                run_experiment(config, tmp_path / "killed")
    run_experiment(config, tmp_path / "killed")
    assert trainer.trained == ["token-0", "tube-0"]
    for name in RESULTS:
        assert _same(tmp_path, name)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.npz")}
    run_experiment(config, tmp_path / "killed")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.npz")} == before


def _killed(*arguments: object) -> None:
    raise KeyboardInterrupt


def _same(folder: Path, name: str) -> bool:
    one, other = ((folder / where / name).read_text() for where in ("whole", "killed"))
    return one.replace("whole", "killed") == other


def test_every_arm_and_the_untrained_backbone_stand_in_the_table(
    experiment: Path, trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", str(experiment), "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert list(dict.fromkeys(table["method"])) == [
        "token (linear)", "tube (linear)", "untrained (linear)", "majority",
    ]  # fmt: skip
    assert "minus untrained (linear)" in table.columns
    assert set(table["seeds"]) == {2}
    assert "| untrained (linear) |" in capsys.readouterr().out
    vectors = [
        np.load(tmp_path / "out" / folder / f"seed-{seed}" / "features" / "main.npz")["clip_features"]
        for folder in ("arms/token", "untrained/0")
        for seed in (0, 1)
    ]
    assert all(not np.array_equal(a, b) for i, a in enumerate(vectors) for b in vectors[:i])


def test_tokens_bring_the_attentive_probe_to_every_arm_and_the_untrained_backbone(
    experiment: Path, trainer: Trainer, tmp_path: Path
) -> None:
    config = load_experiment([experiment], ["seeds=[0]", "features=[tokens=true]", "arms={token: [mask.ratio=0.5]}"])
    run_experiment(config, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(table["method"]) >= {"token (linear)", "token (attentive)", "untrained (attentive)"}
    assert "minus untrained (attentive)" in table.columns


@pytest.mark.parametrize("item", ["stride=two", "tokens=yes", "colour=red", "stride"])
def test_features_that_cannot_be_extracted_so_are_refused(item: str) -> None:
    with pytest.raises(ConfigError, match=f"features: '{item}': expected stride=FRAMES"):
        arms_module.feature_settings([item])


def test_a_folder_of_another_experiment_is_refused(experiment: Path, trainer: Trainer, tmp_path: Path) -> None:
    run_module._claim(load_experiment([experiment]), tmp_path)
    run_module._claim(load_experiment([experiment]), tmp_path)
    with pytest.raises(ConfigError, match="holds another experiment"):
        run_experiment(load_experiment([experiment], ["seeds=[0,1,2]"]), tmp_path)


def test_a_step_done_with_other_settings_is_never_taken_for_done(tmp_path: Path) -> None:
    assert once(tmp_path / "s", digest("a"), lambda: None)
    assert not once(tmp_path / "s", digest("a"), lambda: pytest.fail("done twice"))
    with pytest.raises(ConfigError, match="results of other settings"):
        once(tmp_path / "s", digest("b"), lambda: None)


def test_arms_differ_in_what_they_say_and_share_the_rest(experiment: Path, tmp_path: Path) -> None:
    arms = arms_of(load_experiment([experiment]), tmp_path / "out")
    resolved = {(arm.name, arm.seed): resolve(arm) for arm in arms}
    assert resolved["token", 0]["mask"]["strategy"] == "token"
    assert resolved["tube", 1]["mask"]["strategy"] == "tube"
    assert resolved["tube", 1]["seed"] == 1
    assert resolved["token", 0]["model"] == resolved["tube", 1]["model"]


def test_an_arm_may_start_from_the_release_of_an_earlier_one(experiment: Path, tmp_path: Path) -> None:
    start = "arms.tube=['start_from={out}/arms/token/seed-0/release']"
    assert len(arms_of(load_experiment([experiment], [start]), tmp_path / "out")) == 4
    with pytest.raises(CheckpointError, match="no such folder"):
        arms_of(load_experiment([experiment], [f"arms.tube=[start_from={tmp_path}/none]"]), tmp_path / "out")


def test_a_wrong_arm_is_found_before_anything_is_trained(experiment: Path, trainer: Trainer, tmp_path: Path) -> None:
    config = load_experiment([experiment], ["arms.tube=[mask.stratgy=tube]"])
    with pytest.raises(ConfigError, match=r"mask\.stratgy"):
        run_experiment(config, tmp_path / "out")
    assert not trainer.trained


def test_a_dry_run_says_what_would_be_trained_and_does_nothing(
    experiment: Path, trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["experiment", str(experiment), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(command) == 0
    assert "4 pretraining runs: 2 arms, seeds 0, 1" in capsys.readouterr().out
    assert main([*command, "arms.tube=[mask.stratgy=tube]"]) == 2
    assert "mask.stratgy" in capsys.readouterr().err
    assert not trainer.trained
    assert not (tmp_path / "out").exists()


def test_unequal_fractions_hidden_are_said_aloud() -> None:
    training = pd.DataFrame({"arm": ["a", "a", "b"], "masked_fraction_brain": [0.5, 0.51, 0.18]})
    (warning,) = fraction_warnings(training, 0.02)
    assert "a 50.5%, b 18.0%" in warning
    assert not fraction_warnings(training, 0.5)


def test_summary_takes_the_end_of_the_curve(tmp_path: Path) -> None:
    arm = Arm("a", 0, tmp_path, ())
    arm.run_dir.mkdir()
    rows = [{"step": i, "loss": float(i)} for i in range(20)] + [{"step": 20, "validation_loss": 1.0}]
    (arm.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert summary(arm) == {"loss": 18.5}


def test_training_that_fails_or_stops_is_an_error_with_the_way_on(tmp_path: Path) -> None:
    for code, message in ((75, "start the experiment again"), (3, "exit code 3")):
        with pytest.raises(LaunchError, match=message):
            arms_module.train(Arm("a", 0, tmp_path, ()), ["sh", "-c", f"exit {code}", "--"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.group.corpus=other", "tasks.group.corpus='other'"),
        ("corpora.main.source=web", "expected one of folder"),
        ("corpora.main.path=''", "give the corpus"),
        ("corpora.main.settings=[1]", "corpora.main.settings"),
        ("corpora.main.settings.subjects=4", "a corpus has none"),
        ("arms.untrained=[mask.ratio=0.5]", "untrained is added by itself"),
        ("table=''", "table must be given"),
    ],
)
def test_an_experiment_that_refers_to_nothing_says_so(
    experiment: Path, trainer: Trainer, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_experiment(load_experiment([experiment], [override]), tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpora.planted.settings={subject: 4}", r"settings: unknown key 'subject'; did you mean 'subjects'\?"),
        ("corpora.planted.settings.subjects=many", "settings: subjects: Value 'many'"),
    ],
)
def test_settings_of_a_made_cohort_are_checked_before_anything_is_made(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"corpora.planted.{message}"):
        load_experiment([SHIPPED / "known_truth.yaml"], [override])


def test_settings_given_one_by_one_leave_the_others_as_they_are() -> None:
    config = load_experiment([SHIPPED / "known_truth.yaml"], ["corpora.nothing.settings.subjects=24"])
    settings = source_settings(config.corpora["nothing"], "nothing")
    assert isinstance(settings, TruthSettings)
    assert (settings.subjects, settings.null, settings.planted_signal) == (24, True, 0.08)


@pytest.mark.parametrize("name", ["known_truth", "haxby_objects", "region_vs_random", "masks_ablation", "scaling"])
def test_shipped_experiments_resolve(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHIPPED.parents[1])
    (tmp_path / "corpus").mkdir()
    given = ["atlas=AAL3.nii.gz", "labels=AAL3.tsv"]
    given += ["corpora.main.path=corpus", "table=people.tsv"] if name in ("masks_ablation", "scaling") else []
    given += ["corpora.haxby.path=runs"] if name == "haxby_objects" else []
    config: ExperimentConfig = load_experiment([SHIPPED / f"{name}.yaml"], given)
    arms = run_module.plan_experiment(config, tmp_path)
    assert len(arms) == len(config.arms) * len(config.seeds)
    assert not any((tmp_path / name).exists() for name in ("arms", "data", "experiment.json"))
    for task in config.tasks:
        made = run_module.task_of(config, task, [], tmp_path)
        assert set(made.features) == set(config.arms)
