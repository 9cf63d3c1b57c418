"""Every file in configs/ can be used as it stands: it is valid, and one step of it runs on a CPU at reduced size."""

import json
from pathlib import Path

import pytest

from fmri_scale.config import load_config
from fmri_scale.evaluation.experiment.schema import load_experiment
from fmri_scale.evaluation.tasks.schema import load_task
from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import TRAINEE, run_ranks
from tests.helpers.tiny_training import SHAPE, write_tiny_corpus

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = sorted((CONFIGS / "run").glob("*.yaml"))
SMALLER = [
    *(f"{key}={json.dumps(value)}" for key, value in SHAPE.items() if key.startswith("model.")),
    *("optim.steps=1", "optim.warmup_steps=0", "optim.global_batch=4", "optim.micro_batch=2", "data.num_readers=0"),
    "objective.span_frames=0",
    "log.wandb=off",
]
"What is the machine's size and nothing else."
GIVEN = {
    "experiments": ["table=t.tsv", "atlas=a.nii.gz", "labels=a.tsv", "corpora.main.path=corpus", "corpora.haxby.path=runs"],
    "tasks/haxby_objects": ["target.events=runs", "baselines.bold=runs"],
    "tasks/sex": ["target.table=participants.tsv", "features.brain=brain.npz"],
}
"What the comments of these files ask for."


def given(path: Path) -> list[str]:
    corpora = {name for name in ("main", "haxby") if f"\n  {name}:" in path.read_text()}
    items = (item.split(".") for item in GIVEN.get(f"{path.parent.name}/{path.stem}", GIVEN["experiments"]))
    return [".".join(words) for words in items if words[0] != "corpora" or words[1] in corpora]


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Path:
    """One step of every run, in one process: engine, precision, guards and saving are as in the file."""
    folder = tmp_path_factory.mktemp("cookbook")
    corpus = write_tiny_corpus(folder / "corpus")
    jobs = [
        {"arguments": [str(path), f"data.corpus={corpus}", f"run_dir={folder / path.stem}", *SMALLER]} for path in RUNS
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    assert [p.code for p in run_ranks([str(folder / "jobs.json")], 1, folder, TRAINEE)] == [0]
    return folder


@pytest.mark.dist
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_of_the_cookbook_starts(started, path):
    record = json.loads((started / path.stem / "record_0.json").read_text())
    assert record["code"] == 0, record
    rows = read_metrics(started / path.stem)
    assert [row["step"] for row in rows] == [1]
    assert rows[0]["loss"] > 0
    assert rows[0]["lr"] == pytest.approx(load_config([path]).optim.lr)


@pytest.mark.parametrize("path", sorted((CONFIGS / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_model_has_the_parameters_its_file_tells(path):
    from fmri_scale.models import cost

    told = path.read_text().split("parameters")[0].strip("# ").split()
    number = float(told[0]) * {"M": 1e6, "B": 1e9}[told[1]]
    assert cost(load_config([path]).model).total.parameters == pytest.approx(number, rel=0.05)


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_is_valid_and_so_is_every_arm(path, tmp_path):
    from fmri_scale.evaluation.experiment.arms import arms_of, resolve

    config = load_experiment([path], given(path))
    arms = arms_of(config, tmp_path)
    assert {arm.name for arm in arms} == set(config.arms)
    for arm in arms:
        assert resolve(arm)


@pytest.mark.parametrize("path", sorted((CONFIGS / "tasks").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_task_is_valid(path):
    assert load_task([path], given(path)).name == path.stem
