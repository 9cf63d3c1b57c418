"""Task files to reports by one command: baselines beside, nobody on two sides, the test set sealed until --final."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fmri_scale.cli import attribute, evaluate, main
from fmri_scale.errors import ConfigError, DataError
from fmri_scale.evaluation.split_file import load_split
from fmri_scale.evaluation.tasks import TaskConfig, load_task
from fmri_scale.evaluation.tasks.run import run_task
from tests.helpers.feature_files import write_features

TASKS = Path(__file__).parents[2] / "configs" / "tasks"
FAST = ["scoring.draws=200", "scoring.seeds=[0,1]", "probes=[linear]"]


def _people(num: int) -> list[str]:
    return [f"made__sub-{i:03d}_task-rest" for i in range(num)]


def _cohort(folder: Path, num: int = 60, effect: float = 3.0, seed: int = 0) -> Path:
    """features.npz, participants.tsv (age, group, family) and task.yaml; the first column tells the group."""
    random = np.random.default_rng(seed)
    group = random.permutation(np.arange(num) % 2)
    vectors = random.normal(size=(3 * num, 8))
    vectors[:, 0] += effect * np.repeat(group, 3)
    write_features(folder / "features.npz", _people(num), vectors, 3)
    rows = ["participant_id\tage\tdx\tfamily"]
    rows += [
        f"sub-{i:03d}\t{20 + 5 * v[0]:.2f}\t{'AB'[g]}\tf{i // 2}"
        for i, (g, v) in enumerate(zip(group, vectors[::3], strict=True))
    ]
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    task = {
        "name": "made-up",
        "features": {"model": str(folder / "features.npz")},
        "target": {"table": str(folder / "participants.tsv"), "column": "dx", "family": ["family"]},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder / "task.yaml"


def test_one_command_writes_table_predictions_splits_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, out = _cohort(tmp_path), tmp_path / "out"
    assert main(["evaluate", str(task), *FAST, "--out", str(out), "--final"]) == 0
    printed = capsys.readouterr().out
    assert "| model (linear) |" in printed
    assert "| majority |" in printed
    table = pd.read_csv(out / "results.csv").set_index(["method", "metric"])
    assert table.loc[("model (linear)", "auroc"), "low"] > 0.8
    assert table.loc[("model (linear)", "auroc"), "minus majority low"] > 0.3
    predictions = pd.read_parquet(out / "predictions.parquet")
    assert set(predictions["side"]) == {"test"}
    assert len(predictions) == 2 * 2 * table.loc[("majority", "accuracy"), "units"]
    assert (out / "splits" / "seed-1.json").exists()
    assert "<svg" in (out / "report.html").read_text()
    assert yaml.safe_load((out / "task.yaml").read_text())["target"]["column"] == "dx"


def test_families_stay_together_in_the_saved_split(tmp_path: Path) -> None:
    result = run_task(load_task([_cohort(tmp_path)], FAST), tmp_path / "out", final=False)
    split = pd.read_csv(tmp_path / "out" / "splits" / "seed-0.tsv", sep="\t")
    assert len(split) == 30  # 60 people in families of two
    one = result.predictions.query("method == 'majority' and seed == 0")["subject"]
    assert set((one.str[-3:].astype(int) // 2).value_counts()) == {2}  # both of every family


def test_without_final_the_test_set_stays_sealed(tmp_path: Path) -> None:
    task, out = load_task([_cohort(tmp_path)], FAST), tmp_path / "out"
    first = run_task(task, out, final=False)
    assert set(first.predictions["side"]) == {"val"}
    assert not (out / "test_openings.jsonl").exists()
    assert "sealed" in first.facts()["scored on"]
    for opened in (1, 2):
        result = run_task(task, out, final=True)
        assert f"opened {opened} time(s)" in result.facts()["scored on"]
    seen = set(first.predictions["unit"]) & set(result.predictions["unit"])
    assert not seen  # validation and test people differ, with every seed
    assert len((out / "test_openings.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("method", ["holdout", "k_fold"])
def test_other_seeds_do_not_reset_the_count_of_openings(tmp_path: Path, method: str) -> None:
    task, out = _cohort(tmp_path), tmp_path / "out"
    for opened, seeds in ((1, "[0,1]"), (2, "[2]"), (3, "[1,3]")):
        overrides = [*FAST, f"scoring.seeds={seeds}", f"split.method={method}"]
        result = run_task(load_task([task], overrides), out, final=True)
        assert f"opened {opened} time(s)" in result.facts()["scored on"]
    if method == "holdout":  # other people are tested: a first time
        result = run_task(load_task([task], [*FAST, "split.seed=5"]), out, final=True)
        assert "opened 1 time(s)" in result.facts()["scored on"]


def test_regression_of_a_phenotype(tmp_path: Path) -> None:
    task = load_task([_cohort(tmp_path)], [*FAST, "kind=regression", "target.column=age"])
    scores = run_task(task, tmp_path / "out", final=True).scores
    assert scores.get("model (linear)", "pearson").interval.low > 0.3
    assert scores.get("model (linear)", "mae").against["mean"].high < 0


def test_who_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    task = _cohort(tmp_path)
    table = (tmp_path / "participants.tsv").read_text().replace("sub-007\t", "sub-x\t").splitlines()
    table[12] = table[12].replace("\tA\t", "\tn/a\t").replace("\tB\t", "\tn/a\t")
    (tmp_path / "participants.tsv").write_text("\n".join(table) + "\n")
    result = run_task(load_task([task], FAST), tmp_path / "out", final=False)
    assert result.notes == ["2 of 60 subjects have no dx: made/sub-007, made/sub-011"]
    assert "made/sub-007" in (tmp_path / "out" / "report.html").read_text()


def test_seeds_choose_the_file_of_each_pretraining_seed(tmp_path: Path) -> None:
    task = _cohort(tmp_path)
    content = dict(np.load(tmp_path / "features.npz"))
    for seed in (0, 1):
        noise = np.random.default_rng(seed).normal(size=content["clip_features"].shape)
        vectors = content["clip_features"] if seed == 0 else noise
        np.savez(tmp_path / f"f{seed}.npz", **{**content, "clip_features": vectors.astype(np.float32)})
    result = run_task(
        load_task([task], [*FAST, f"features.model={tmp_path}/f{{seed}}.npz"]), tmp_path / "o", final=True
    )
    score = result.scores.get("model (linear)", "auroc")
    assert score.seed_sd > 0.15  # one seed knows, the other guesses


def test_attentive_probe_reads_tokens(tmp_path: Path) -> None:
    task = _cohort(tmp_path)
    content = np.load(tmp_path / "features.npz")
    tokens = np.random.default_rng(0).normal(size=(180, 5, 8))
    tokens[:, 2] = content["clip_features"]
    write_features(tmp_path / "tokens.npz", _people(60), content["clip_features"], 3, tokens=tokens)
    result = run_task(
        load_task([task], [*FAST, f"tokens.model={tmp_path}/tokens.npz", "scoring.seeds=[0]"]),
        tmp_path / "out",
        final=True,
    )
    assert result.scores.get("model (attentive)", "auroc").interval.low > 0.7
    with pytest.raises(DataError, match="holds no tokens"):
        run_task(load_task([task], [*FAST, f"tokens.model={tmp_path}/features.npz"]), tmp_path / "out", final=False)


def _sessions(folder: Path, what: str, num: int = 24) -> list[str]:
    """Two sessions of two runs a person; vectors hold the person, or only the run that they are from."""
    random = np.random.default_rng(1)
    labels = [f"d__sub-{p:02d}_ses-{s}_run-{r}" for p in range(num) for s in (1, 2) for r in (1, 2)]
    size = {"person": (num, 1, 1), "session": (num, 2, 1), "run": (num, 2, 2)}[what]
    traits = np.broadcast_to(random.normal(size=(*size, 16)), (num, 2, 2, 16)).reshape(-1, 16)
    vectors = np.repeat(traits, 4, axis=0) + 0.3 * random.normal(size=(4 * len(labels), 16))
    write_features(folder / "features.npz", labels, vectors, 4)
    return [
        "name=reid", "kind=reidentification", "unit=run", f"features.model={folder}/features.npz",
        "split.fractions=[0.2,0.2,0.6]", "split.group=subject", "scoring.draws=200", "scoring.seeds=[0]",
    ]  # fmt: skip


@pytest.mark.parametrize("across", ["session", "run"])
def test_people_are_found_again_in_another_session(tmp_path: Path, across: str) -> None:
    task = load_task([], [*_sessions(tmp_path, "person"), f"target.across={across}"])
    scores = run_task(task, tmp_path / "out", final=True).scores
    assert scores.get("model", "top1").interval.value > 0.95
    assert scores.get("model", "map").interval.value > 0.95
    assert scores.chance["top1"] < 0.15


@pytest.mark.parametrize(("what", "across"), [("run", "session"), ("run", "run"), ("session", "session")])
def test_what_only_marks_a_run_or_session_finds_nobody(tmp_path: Path, what: str, across: str) -> None:
    """Clips of one run are all but equal here; counted as matches they would give a perfect score."""
    task = load_task([], [*_sessions(tmp_path, what), f"target.across={across}"])
    scores = run_task(task, tmp_path / "out", final=True).scores
    interval = scores.get("model", "top1").interval
    assert interval.low <= scores.chance["top1"] <= interval.high
    assert scores.get("model", "map").interval.value == pytest.approx(scores.chance["map"], abs=0.06)


def test_session_marks_do_find_people_across_runs_only(tmp_path: Path) -> None:
    """The same vectors pass as identity when only runs must differ: why `across: session` is the default."""
    task = load_task([], [*_sessions(tmp_path, "session"), "target.across=run"])
    assert run_task(task, tmp_path / "out", final=True).scores.get("model", "top1").interval.low > 0.9


def test_nobody_with_two_sessions_is_an_error(tmp_path: Path) -> None:
    write_features(tmp_path / "f.npz", _people(12), np.zeros((12, 4)), 1)
    overrides = ["name=r", "kind=reidentification", "unit=run", f"features.m={tmp_path}/f.npz", "split.group=subject"]
    with pytest.raises(DataError, match="recordings in two sessions"):
        run_task(load_task([], overrides), tmp_path / "out", final=False)


def _images(folder: Path, signal: float) -> list[str]:
    """6 people see 60 images in blocks of 20 s; vectors hold a linear image of the embedding."""
    random = np.random.default_rng(2)
    embedding = random.normal(size=(60, 10)) + 5.0  # a common part that tells nothing
    frame = pd.DataFrame(embedding, columns=[f"d{i}" for i in range(10)])
    frame.insert(0, "image", [f"im{i:02d}.png" for i in range(60)])
    frame.to_csv(folder / "images.csv", index=False)
    mixing, labels, vectors = random.normal(size=(10, 24)), [], []
    for person in range(6):
        order = random.permutation(60)
        (folder / f"sub-{person}_task-look_events.tsv").write_text(
            "onset\tduration\tstim_file\n" + "".join(f"{20 * i}\t20\tim{k:02d}.png\n" for i, k in enumerate(order))
        )
        labels.append(f"d__sub-{person}_task-look")
        clips = np.repeat(signal * (embedding[order] - 5.0) @ mixing, 2, axis=0)
        vectors.append(clips + random.normal(size=clips.shape))
    write_features(folder / "f.npz", labels, np.concatenate(vectors), 120)
    return [
        "name=look", "kind=retrieval", "unit=block", f"features.model={folder}/f.npz", f"target.events={folder}",
        "target.event_column=stim_file", "target.delay_s=0", f"target.images={folder}/images.csv",
        "split.group=image", "scoring.draws=200", "scoring.seeds=[0]", "probes=[linear]",
    ]  # fmt: skip


def test_unseen_images_are_retrieved_by_a_planted_map(tmp_path: Path) -> None:
    result = run_task(load_task([], _images(tmp_path, 1.0)), tmp_path / "out", final=True)
    assert result.scores.get("model (linear)", "top1").interval.low > 0.5
    assert result.scores.chance["top1"] == pytest.approx(1 / 12)  # a fifth of 60 images
    assert result.scores.get("mean", "top1").interval.value < 0.2
    assert not result.notes


def test_without_a_map_retrieval_is_chance_and_shared_images_are_told(tmp_path: Path) -> None:
    task = load_task([], [*_images(tmp_path, 0.0), "split.group=subject", "split.fractions=[0.3,0.2,0.5]"])
    result = run_task(task, tmp_path / "out", final=True)
    interval = result.scores.get("model (linear)", "top5").interval
    assert interval.low <= result.scores.chance["top5"] <= interval.high
    assert result.notes == ["60 images were seen in training and in test; split.group=image tests on unseen images"]


def _blocks(folder: Path, effect: float) -> list[str]:
    """One person, 8 runs of 4 kinds of block; a clip's vector tells the kind 5 s after the block began."""
    random, labels, vectors = np.random.default_rng(3), [], []
    kinds = ["cat", "face", "house", "shoe"]
    for run in range(8):
        order = random.permutation(4)
        lines = "".join(f"{15 + 40 * i}\t20\t{kinds[k]}\n{35 + 40 * i}\t20\trest\n" for i, k in enumerate(order))
        (folder / f"sub-1_task-see_run-{run}_events.tsv").write_text(f"onset\tduration\ttrial_type\n{lines}")
        labels.append(f"d__sub-1_task-see_run-{run}")
        clips = random.normal(size=(18, 12))
        for i, k in enumerate(order):
            clips[2 + 4 * i : 4 + 4 * i, k] += effect  # 20 to 40 s: the block of 15 to 35 s, 5 s later
        vectors.append(clips)
    write_features(folder / "f.npz", labels, np.concatenate(vectors), 18)
    return [
        "name=see", "unit=block", f"features.model={folder}/f.npz", f"target.events={folder}", "target.ignore=[rest]",
        "split.method=leave_one_out", "split.group=run", "scoring.draws=200", "scoring.seeds=[0]", "probes=[linear]",
    ]  # fmt: skip


def test_events_of_one_run_never_label_runs_of_two_datasets(tmp_path: Path) -> None:
    overrides = _blocks(tmp_path, 3.0)
    labels = [f"{dataset}__sub-1_task-see_run-{run}" for dataset in "de" for run in range(8)]
    write_features(tmp_path / "f.npz", labels, np.zeros((288, 4)), 18)
    said = r"names runs of datasets d and e alike, such as '1/see/0' \(\d+ in all\); evaluate one"
    with pytest.raises(DataError, match=said):
        run_task(load_task([], overrides), tmp_path / "out", final=False)


def test_task_states_leave_one_run_out(tmp_path: Path) -> None:
    result = run_task(load_task([], _blocks(tmp_path, 3.0)), tmp_path / "out", final=True)
    assert result.scores.num_units == 32
    assert result.scores.num_groups == 8
    assert result.scores.get("model (linear)", "accuracy").interval.low > 0.8
    split = json.loads((tmp_path / "out" / "splits" / "seed-0.json").read_text())
    assert len(split["folds"]) == 8


def test_the_delay_moves_blocks_to_where_the_response_is(tmp_path: Path) -> None:
    overrides = _blocks(tmp_path, 3.0)
    late = run_task(load_task([], [*overrides, "target.delay_s=25"]), tmp_path / "out", final=True)
    interval = late.scores.get("model (linear)", "accuracy").interval
    assert interval.low <= 0.25 <= interval.high


def test_splitting_a_person_is_named_in_the_report_and_people_are_never_split_by_run_unasked(tmp_path: Path) -> None:
    overrides = [item for item in _blocks(tmp_path, 3.0) if not item.startswith("split.")]
    with pytest.raises(DataError, match="1 groups cannot be divided"):
        run_task(load_task([], overrides), tmp_path / "out", final=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["kind=classify"], "kind='classify': expected one of classification"),
        (["name=''"], "name=''"),
        (["target.column=''"], "target.column: name the column"),
        (["unit=block"], "blocks come from events"),
        (["scoring.seeds=[1,1]"], "different seeds"),
        (["split.metod=holdout"], "unknown key 'split.metod'; did you mean 'split.method'"),
        (["target.min_overlap=0"], "expected a share above 0"),
        (["scoring.draws=many"], "scoring.draws"),
        (["baselines.band_hz=[0.1,0.01]"], "expected the lower frequency first"),
        (["kind=reidentification", "unit=run", "tokens.m=t.npz"], "tokens with kind=reidentification: .*give features"),
        (["kind=reidentification", "unit=run", "baselines.tokens.m=t.npz"], "tokens with kind=reidentification"),
        (
            ["kind=retrieval", "unit=block", "target.events=e", "target.images=i.csv", "tokens.m=t.npz"],
            "tokens with kind=retrieval: tokens need classification or regression",
        ),
    ],
)
def test_a_task_that_makes_no_sense_says_which_key(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task([_cohort(tmp_path)], overrides)


def test_damaged_features_are_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = _cohort(tmp_path)
    data = (tmp_path / "features.npz").read_bytes()
    (tmp_path / "features.npz").write_bytes(data[: len(data) // 2])
    assert main(["evaluate", str(task), "--out", str(tmp_path / "out")]) == 2
    assert "features.npz: not features of fmri-scale features" in capsys.readouterr().err


def test_a_plain_array_is_not_taken_for_features(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((60, 8)))
    with pytest.raises(DataError, match=r"v\.npy: one plain array; expected the \.npz that fmri-scale features"):
        run_task(load_task([_cohort(tmp_path)], [f"features.model={tmp_path}/v.npy"]), tmp_path / "out", final=False)


def test_features_that_are_not_finite_name_the_run(tmp_path: Path) -> None:
    task = _cohort(tmp_path)
    content = dict(np.load(tmp_path / "features.npz"))
    content["clip_features"][7, 2] = np.nan
    np.savez(tmp_path / "features.npz", **content)
    with pytest.raises(DataError, match="1 clips, such as clip 7 of made__sub-002_task-rest, are not finite"):
        run_task(load_task([task], FAST), tmp_path / "out", final=False)


def test_units_of_sources_that_never_meet_show_both_names(tmp_path: Path) -> None:
    task = _cohort(tmp_path)
    write_features(tmp_path / "other.npz", [f"b__sub-{i}" for i in range(9)], np.zeros((9, 4)), 1)
    with pytest.raises(DataError, match=r"model: made/sub-000; other: b/sub-0.*dataset included"):
        run_task(load_task([task], [*FAST, f"features.other={tmp_path}/other.npz"]), tmp_path / "out", final=False)


def test_default_task_needs_only_features_and_target() -> None:
    assert TaskConfig().split.group == "family"
    assert TaskConfig().scoring.level == 0.95


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split.method=leave_one_out"], "leaves out one family at a time, but 40 of 40 carry one label"),
        (["split.method=leave_one_out", "kind=regression", "target.column=age"], r"use split\.method=k_fold"),
        (["split.method=k_fold", "split.folds=40"], "40 of 40 carry one label only"),
    ],
)
def test_people_are_not_left_out_one_by_one(tmp_path: Path, overrides: list[str], message: str) -> None:
    """The commonest class of the others is never that of the one left out: its AUROC would be 0."""
    task = load_task([_cohort(tmp_path, 40)], [*FAST, "target.family=[]", *overrides])
    with pytest.raises(DataError, match=message):
        run_task(task, tmp_path / "out", final=False)


def _saved_split(folder: Path, *overrides: str) -> tuple[Path, list[str]]:
    """A task of 40 people and its saved split; returns the task file and overrides that take the split from there."""
    task = _cohort(folder, 40)
    fast = [*FAST, "target.family=[]"]
    run_task(load_task([task], [*fast, *overrides]), folder / "first", final=False)
    return task, [*fast, "split.method=file", f"split.file={folder}/first/splits/seed-0.json"]


def _keep(folder: Path, kept: Callable[[str], bool]) -> None:
    """Leave some people out of the table."""
    head, *rows = (folder / "participants.tsv").read_text().splitlines()
    rows = [row for row in rows if kept("made/" + row.split("\t")[0])]
    (folder / "participants.tsv").write_text("\n".join([head, *rows]) + "\n")


def test_a_saved_split_of_more_people_serves_fewer(tmp_path: Path) -> None:
    task, again = _saved_split(tmp_path, "split.method=k_fold", "split.folds=8")
    saved = load_split(tmp_path / "first" / "splits" / "seed-0.json")
    gone = saved.folds[2].test
    _keep(tmp_path, lambda name: name not in {*gone, "made/sub-000"})
    result = run_task(load_task([task], again), tmp_path / "out", final=True)
    lost = len({*gone, "made/sub-000"})
    (note,) = [note for note in result.notes if "seed-0.json" in note]
    assert note.startswith(
        f"{lost} of 40 groups of {tmp_path}/first/splits/seed-0.json are not in this task: made/sub-"
    )
    assert note.endswith("; 1 of its 8 folds test nobody else and are left out")
    assert [fold.name for fold in result.splits[0].folds] == [f.name for f in saved.folds if f is not saved.folds[2]]
    assert result.splits[0].groups() == saved.groups() - {*gone, "made/sub-000"}
    assert set(result.predictions["unit"]) == result.splits[0].groups()


@pytest.mark.parametrize(
    ("side", "message"),
    [("fit", "no family of training is among"), ("val", "no family of validation"), ("test", "of any test set")],
)
def test_a_saved_split_that_loses_a_side_is_refused(tmp_path: Path, side: str, message: str) -> None:
    task, again = _saved_split(tmp_path)
    fold = load_split(tmp_path / "first" / "splits" / "seed-0.json").folds[0]
    gone = {"fit": fold.fit, "val": fold.choices[0].val, "test": fold.test}[side]
    _keep(tmp_path, lambda name: name not in gone)
    with pytest.raises(DataError, match=rf"seed-0\.json: split.*{message}.*make a new split"):
        run_task(load_task([task], again), tmp_path / "out", final=False)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("haxby_objects", ["target.events=d", "baselines.bold=d", "baselines.mask=m.nii.gz"]),
        ("sex", ["target.table=participants.tsv"]),
    ],
)
def test_shipped_task_files_load_with_what_the_user_gives(name: str, overrides: list[str]) -> None:
    task = load_task([TASKS / f"{name}.yaml"], [*overrides, "features.brain=brain.npz"])
    assert task.name == name


def test_every_task_file_that_help_names_is_there() -> None:
    named = set(re.findall(r"configs/tasks/(\w+)\.yaml", f"{evaluate.__doc__} {attribute.__doc__}"))
    assert named
    assert named <= {path.stem for path in TASKS.glob("*.yaml")}
