"""The cohort with known truth: the coupling of the planted regions tells the groups apart, and nothing else does."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fmri_scale.evaluation.baselines import ImageSeries
from fmri_scale.evaluation.baselines.connectivity import connectomes
from fmri_scale.evaluation.experiment.schema import load_experiment
from fmri_scale.evaluation.tables import read_target
from fmri_scale.evaluation.tasks import load_task
from fmri_scale.evaluation.tasks.run import run_task
from sharding.atlas import load_label_image_on_grid, load_labels_tsv
from sharding.cli import main
from sharding.errors import ShardingError
from sharding.format import GRID_AFFINE
from sharding.phantom_anatomy import load_anatomy
from sharding.phantom_truth import TruthSettings, make_truth_cohort, parcels_of, region_courses

ROOT = Path(__file__).resolve().parents[2]
SMALL = TruthSettings(subjects=40, volumes=40, voxel_mm=12.0)
NUMBERS = [(3, 8), (5, 1)]


def _correlations(settings: TruthSettings, group: int, people: int = 60) -> np.ndarray:
    made = [region_courses(12, NUMBERS, settings, group, np.random.default_rng([group, i])) for i in range(people)]
    return np.stack([np.corrcoef(courses.T) for courses in made])


def test_only_the_planted_pairs_differ_between_the_groups() -> None:
    control, patient = (_correlations(SMALL, group).mean(axis=0) for group in (0, 1))
    planted = np.zeros((12, 12), dtype=bool)
    for one, other in NUMBERS:
        planted[one, other] = planted[other, one] = True
        assert control[one, other] == pytest.approx(0.9, abs=0.05)
        assert patient[one, other] == pytest.approx(0, abs=0.15)
    assert np.abs(control - patient)[~planted].max() < 0.2  # 60 people of 40 slow frames: sd of a difference is 0.04


def test_every_region_alone_is_alike_in_both_groups() -> None:
    courses = [
        np.concatenate([region_courses(12, NUMBERS, SMALL, group, np.random.default_rng(i)) for i in range(100)])
        for group in (0, 1)
    ]
    for made in courses:
        np.testing.assert_allclose(made.var(axis=0), 1, atol=0.1)
        lagged = (made[1:] * made[:-1]).mean(axis=0)
        np.testing.assert_allclose(lagged, 0.6 * 39 / 40, atol=0.1)  # people follow each other every 40 frames


def test_a_null_cohort_couples_without_regard_to_the_group() -> None:
    null = replace(SMALL, null=True)
    coupled = [_correlations(null, group, 200)[:, 3, 8] > 0.6 for group in (0, 1)]
    assert all(0.38 <= share.mean() <= 0.62 for share in coupled)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("truth")
    for null in (False, True):
        for _ in make_truth_cohort(folder / str(null), replace(SMALL, null=null)):
            pass
    return {null: folder / str(null) for null in (False, True)}


def _edge_areas(cohort: Path) -> tuple[np.ndarray, np.ndarray]:
    """How well each edge of the connectome tells the groups apart (area under the curve, either way), and which
    edges are planted."""
    names = [label.name for label in load_labels_tsv(cohort / "atlas.tsv")]
    series = ImageSeries([cohort], cohort / "atlas.nii.gz")
    target = read_target(cohort / "participants.tsv", "group", "classification")
    patient = np.array([value == "patient" for value in target.of(series.entities)])
    edges = connectomes("correlation", [series.series(run) for run in range(len(patient))])
    areas = np.array([roc_auc_score(patient, edge) for edge in edges.T])
    one, other = np.tril_indices(len(names), -1)
    pairs = [{names.index(a), names.index(b)} for a, b in SMALL.pairs]
    return np.maximum(areas, 1 - areas), np.array([{i, j} in pairs for i, j in zip(one, other, strict=True)])


def test_the_planted_edges_tell_the_groups_apart_and_others_do_not(cohorts: dict[bool, Path]) -> None:
    areas, planted = _edge_areas(cohorts[False])
    assert planted.sum() == 2
    assert areas[planted].min() > 0.97
    assert areas[~planted].max() < 0.95
    assert np.median(areas[~planted]) < 0.6  # 40 people: half of all chance areas lie within 0.06 of 0.5


def test_in_a_null_cohort_the_planted_edges_tell_nothing(cohorts: dict[bool, Path]) -> None:
    areas, planted = _edge_areas(cohorts[True])
    assert areas[planted].max() < 0.7


def test_activity_alone_tells_nothing(cohorts: dict[bool, Path], tmp_path: Path) -> None:
    cohort = cohorts[False]
    task = load_task([], [
        "name=truth", f"target.table={cohort}/participants.tsv", "target.column=group", f"baselines.bold={cohort}",
        f"baselines.atlas={cohort}/atlas.nii.gz", "baselines.connectivity=[]", "baselines.patterns=true",
        "split.fractions=[0.4,0.2,0.4]", "scoring.draws=300", "scoring.seeds=[0]",
    ])  # fmt: skip
    interval = run_task(task, tmp_path / "out", final=True).scores.get("region means", "auroc").interval
    assert interval.low <= 0.5 <= interval.high


def test_the_atlas_names_regions_where_they_lie(cohorts: dict[bool, Path]) -> None:
    labels = load_label_image_on_grid(cohorts[False] / "atlas.nii.gz")
    named = {label.name: label.index for label in load_labels_tsv(cohorts[False] / "atlas.tsv")}
    truth = json.loads((cohorts[False] / "truth.json").read_text())
    assert set(truth["planted"]) <= set(named)
    for name, index in named.items():
        x = GRID_AFFINE[0, 3] + 2 * np.argwhere(labels == index)[:, 0].mean()
        assert (x < 0) == name.endswith("_L") or name.endswith("_M"), name


def test_the_same_seed_gives_the_same_runs(tmp_path: Path) -> None:
    tiny = replace(SMALL, subjects=4, volumes=6)
    for name in ("a", "b"):
        list(make_truth_cohort(tmp_path / name, tiny))
    first, second = (sorted((tmp_path / name).rglob("*_bold.nii.gz")) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(np.asarray(nib.load(one).dataobj), np.asarray(nib.load(other).dataobj))


def test_the_command_makes_it_and_refuses_what_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--subjects", "4", "--volumes", "5", "--voxel-mm", "12"]
    assert main(["phantom", str(tmp_path / "c"), "--known-truth", "--null", *size]) == 0
    assert json.loads((tmp_path / "c" / "truth.json").read_text())["null"] is True
    assert main(["phantom", str(tmp_path / "d"), "--null"]) == 2
    assert "--null goes with --known-truth" in capsys.readouterr().err
    with pytest.raises(ShardingError, match="no region is named 'nowhere'"):
        next(make_truth_cohort(tmp_path / "e", replace(SMALL, pairs=(("nowhere", "motor_1_L"),))))


def test_the_shipped_experiment_plants_regions_of_like_size_and_differs_from_its_null_in_the_groups_alone() -> None:
    corpora = load_experiment([ROOT / "configs" / "experiments" / "known_truth.yaml"]).corpora
    planted, nothing = (corpora[name].settings for name in ("planted", "nothing"))
    assert nothing == planted | {"null": True, "seed": 1}
    parcels = parcels_of(load_anatomy(TruthSettings().voxel_mm))
    sizes = [int((parcels.of_voxel == parcels.names.index(name)).sum()) for pair in planted["pairs"] for name in pair]
    assert max(sizes) < 1.5 * min(sizes)  # of unlike pairs occlusion finds one partner only
