"""Nothing of held-out people reaches what is fitted: their data are replaced by noise, and all else stays bit for bit.

Of every kind of task and probe. Before the final evaluation the test people's data change no prediction and no setting;
in it, what is predicted for one of them does not depend on the others. Tuned models: test_evaluation_tuning.py.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from fmri_scale.evaluation.tasks import load_task
from fmri_scale.evaluation.tasks.result import TaskResult
from fmri_scale.evaluation.tasks.run import run_task
from tests.helpers.feature_files import write_features

PEOPLE, CLIPS, WIDTH, TOKENS = 36, 3, 6, 4
SHARED = ["scoring.draws=100", "scoring.seeds=[0,1]"]


def _write(folder: Path, labels: list[str], clips: int, vectors: np.ndarray, noise: set[str]) -> Path:
    """Features and tokens; the rows of runs whose subject is in `noise` are replaced by large random numbers."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(99)
    tokens = np.repeat(vectors[:, None], TOKENS, axis=1) + np.arange(TOKENS)[:, None]
    for run, label in enumerate(labels):
        if any(f"sub-{name}" in label for name in noise):
            rows = slice(run * clips, (run + 1) * clips)
            vectors[rows] = 1e3 * random.normal(size=vectors[rows].shape)
            tokens[rows] = 1e3 * random.normal(size=tokens[rows].shape)
    return write_features(folder / "f.npz", labels, vectors, clips, tokens=tokens)


def _people(folder: Path, noise: set[str]) -> list[str]:
    """Families of two, a class and an age."""
    random = np.random.default_rng(0)
    group = random.permutation(np.arange(PEOPLE) % 2)
    vectors = random.normal(size=(PEOPLE * CLIPS, WIDTH))
    vectors[:, 0] += 2.0 * np.repeat(group, CLIPS)
    features = _write(folder, [f"d__sub-{i:02d}_task-rest" for i in range(PEOPLE)], CLIPS, vectors, noise)
    rows = "".join(f"{i:02d}\t{'ab'[g]}\t{30 + 9 * g + i % 5}\tf{i // 2}\n" for i, g in enumerate(group))
    (folder / "people.tsv").write_text(f"subject\tgroup\tage\tfamily\n{rows}")
    return [
        f"features.model={features}", f"tokens.model={features}", f"target.table={folder}/people.tsv",
        "target.family=[family]", "name=people",
    ]  # fmt: skip


def _classes(folder: Path, noise: set[str]) -> list[str]:
    return [*_people(folder, noise), "target.column=group"]


def _ages(folder: Path, noise: set[str]) -> list[str]:
    return [*_people(folder, noise), "kind=regression", "target.column=age"]


def _again(folder: Path, noise: set[str]) -> list[str]:
    """Two sessions of each person."""
    random = np.random.default_rng(1)
    labels = [f"d__sub-{i:02d}_ses-{s}" for i in range(PEOPLE) for s in (1, 2)]
    traits = np.repeat(random.normal(size=(PEOPLE, WIDTH)), 2 * CLIPS, axis=0)
    features = _write(folder, labels, CLIPS, traits + random.normal(size=traits.shape), noise)
    return ["name=again", "kind=reidentification", "unit=session", f"features.model={features}", "split.group=subject"]


def _seen(folder: Path, noise: set[str]) -> list[str]:
    """Every person sees twelve images."""
    random = np.random.default_rng(2)
    embedding = pd.DataFrame(random.normal(size=(12, 4)), columns=list("wxyz"))
    embedding.insert(0, "image", [f"im{i:02d}.png" for i in range(12)])
    folder.mkdir(exist_ok=True)
    embedding.to_csv(folder / "images.csv", index=False)
    vectors = np.tile(embedding.iloc[:, 1:].to_numpy() @ random.normal(size=(4, WIDTH)), (PEOPLE, 1))
    labels = [f"d__sub-{i:02d}_task-look" for i in range(PEOPLE)]
    for i in range(PEOPLE):
        lines = "".join(f"{10 * k}\t10\tim{k:02d}.png\n" for k in range(12))
        (folder / f"sub-{i:02d}_task-look_events.tsv").write_text(f"onset\tduration\tstim_file\n{lines}")
    features = _write(folder, labels, 12, vectors + random.normal(size=vectors.shape), noise)
    return [
        "name=seen", "kind=retrieval", "unit=block", f"features.model={features}", f"target.events={folder}",
        "target.event_column=stim_file", "target.delay_s=0", f"target.images={folder}/images.csv",
        "split.group=subject",
    ]  # fmt: skip


def _bold(folder: Path, noise: set[str]) -> list[str]:
    """Images of four regions of 8 voxels: connectomes, tangent space and mean activity, without features."""
    random, affine = np.random.default_rng(3), np.diag([4.0, 4.0, 4.0, 1.0])
    labels = np.kron(np.arange(1, 5).reshape(4, 1, 1), np.ones((1, 4, 2), dtype=np.int16)).astype(np.int16)
    (folder / "d").mkdir(parents=True)
    nib.save(nib.Nifti1Image(labels, affine), folder / "atlas.nii.gz")
    for person in range(PEOPLE):
        course = random.normal(size=(40, 4))
        course[:, 1] += (person % 2) * course[:, 0]
        voxels = 1000 + 10 * course[:, labels - 1].transpose(1, 2, 3, 0) + random.normal(size=(4, 4, 2, 40))
        if f"{person:02d}" in noise:
            voxels = 1000 + 500 * np.random.default_rng(person).normal(size=voxels.shape)
        image = nib.Nifti1Image(voxels.astype(np.float32), affine)
        image.header.set_zooms((4.0, 4.0, 4.0, 1.0))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, folder / "d" / f"sub-{person:02d}_task-rest_bold.nii.gz")
    rows = "".join(f"{person:02d}\t{'ab'[person % 2]}\n" for person in range(PEOPLE))
    (folder / "people.tsv").write_text(f"subject\tgroup\n{rows}")
    return [
        "name=bold", f"target.table={folder}/people.tsv", "target.column=group", f"baselines.bold={folder}/d",
        f"baselines.atlas={folder}/atlas.nii.gz", "baselines.connectivity=[correlation,partial correlation,tangent]",
        "baselines.patterns=true",
    ]  # fmt: skip


def _run(make, folder: Path, noise: set[str], final: bool, *overrides: str) -> TaskResult:
    return run_task(load_task([], [*make(folder, noise), *SHARED, *overrides]), folder / "out", final)


def _tested(result: TaskResult) -> set[str]:
    """Names of the people in the test sets of all seeds' splits; these are the same for every seed of a holdout."""
    groups = {group for split in result.splits.values() for group in split.folds[0].test}
    numbers = {int(group.split("sub-")[1][:2]) for group in groups}
    return {
        f"{n:02d}" for number in numbers for n in ((number, number + 1) if result.task.target.family else (number,))
    }


@pytest.mark.parametrize("make", [_classes, _ages, _again, _seen, _bold])
def test_the_data_of_test_people_change_nothing_before_the_final_evaluation(make, tmp_path: Path) -> None:
    plain = _run(make, tmp_path / "plain", set(), final=False)
    noisy = _run(make, tmp_path / "noisy", _tested(plain), final=False)
    assert len(_tested(plain)) >= 7
    pd.testing.assert_frame_equal(plain.predictions, noisy.predictions, check_exact=True)
    assert plain.settings == noisy.settings
    everybody = _run(make, tmp_path / "everybody", {f"{i:02d}" for i in range(PEOPLE)}, final=False)
    assert not plain.predictions.equals(everybody.predictions)  # the noise would be seen


@pytest.mark.parametrize("make", [_classes, _ages, _bold])
def test_what_is_predicted_for_a_test_person_does_not_depend_on_the_others(make, tmp_path: Path) -> None:
    plain = _run(make, tmp_path / "plain", set(), final=True)
    alone, *others = sorted(_tested(plain))
    noisy = _run(make, tmp_path / "noisy", set(others), final=True)
    rows = [found.predictions.query(f"unit == 'd/sub-{alone}'").reset_index(drop=True) for found in (plain, noisy)]
    assert len(rows[0]) == 2 * plain.predictions["method"].nunique()
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    assert plain.settings == noisy.settings
    assert not plain.predictions.equals(noisy.predictions)
