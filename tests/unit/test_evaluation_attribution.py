"""Effects of regions are exact, evidence finds what is planted and nothing else, maps lie where the regions lie."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from fmri_scale import cli
from fmri_scale.cli import attribute as command
from fmri_scale.errors import ConfigError, DataError
from fmri_scale.evaluation.attribution import task as task_module
from fmri_scale.evaluation.attribution.effects import batches, gradient_effects, occlusion_effects, volume_of
from fmri_scale.evaluation.attribution.reconstruction import reconstruction_error
from fmri_scale.evaluation.attribution.regions import Regions, load_regions
from fmri_scale.evaluation.attribution.report import save_attribution, save_errors
from fmri_scale.evaluation.attribution.runs import spread
from fmri_scale.evaluation.attribution.statistic import (
    contrast,
    evidence,
    linear_head,
    permuted_groups,
    weigh_regions,
)
from fmri_scale.evaluation.attribution.task import Attribution, AttributionSettings, attribute
from fmri_scale.evaluation.compare import Representation, Units
from fmri_scale.evaluation.probes import LinearProbe, Problem
from fmri_scale.evaluation.probes.choice import choose_and_fit
from fmri_scale.evaluation.sealed import FIT, VAL, Part
from fmri_scale.evaluation.splits import Split, holdout, leave_one_out
from fmri_scale.evaluation.tasks import load_task
from fmri_scale.evaluation.tasks.schema import TaskConfig
from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.mask import brain_mask
from tests.helpers.tiny_pretrained import tiny_pretrained

CLASSES, VALUES = Problem("classification", ("a", "b")), Problem("regression")


@dataclass
class MadeRun:
    """A run of random codes over a mask."""

    codes: np.ndarray
    scale: np.ndarray
    stats: np.ndarray
    unit: float = 1.0
    mean: float = 0.0
    sd: float = 1.0
    background: float = 0.0

    def segment(self, start: int, stop: int) -> np.ndarray:
        return self.codes[start:stop]


@pytest.fixture(scope="module")
def made() -> tuple[Regions, MadeRun]:
    """Five slabs over a block of the grid that does not end at coarse voxels; the last region holds no signal."""
    mask = np.zeros(GRID_SHAPE, dtype=bool)
    mask[30:66, 34:60, 38:58] = True
    slab = np.repeat(np.arange(5), [8, 7, 9, 6, 6])
    of_voxel = np.broadcast_to(slab[:, None, None], (36, 26, 20)).ravel().astype(np.int64)
    regions = Regions([f"r{i}" for i in range(5)], ["left", "left", "", "right", "right"], of_voxel, mask)
    random = np.random.default_rng(0)
    codes = random.integers(-60, 61, (8, mask.sum()), dtype=np.int8)
    codes[:, of_voxel == 4] = 5
    sd = np.full(mask.sum(), 30.0)
    stats = np.stack([np.zeros(mask.sum()), sd]).astype(np.float16)
    return regions, MadeRun(codes, np.stack([sd * 0, sd * 0 + 1]).astype(np.float16), stats)


STARTS = np.array([0, 4])


def test_integrated_gradients_of_all_regions_sum_to_the_change_of_each_feature(made: tuple[Regions, MadeRun]) -> None:
    regions, run = made
    model = tiny_pretrained(regions.mask)
    effects = gradient_effects(model, run, STARTS[:1], regions, steps=32)
    (batch,) = batches(model, run, STARTS[:1], 1)
    with torch.no_grad():
        whole = model.features(volume_of(model, batch))
        batch.codes = batch.codes.float().mean(dim=1, keepdim=True).round().to(torch.int8).expand_as(batch.codes)
        still = model.features(volume_of(model, batch))
    change = (whole - still).mean(dim=0).numpy()
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(effects.sum(axis=0), change, atol=0.02 * np.abs(change).max())


@pytest.mark.parametrize("method", [occlusion_effects, gradient_effects])
def test_a_region_that_does_nothing_has_no_effect_and_others_have(made: tuple[Regions, MadeRun], method) -> None:
    regions, run = made
    effects = method(tiny_pretrained(regions.mask), run, STARTS[:1], regions)
    assert np.abs(effects[4]).max() == 0
    assert (np.abs(effects[:4]).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("normalisation", ["voxel_z", "run_z", "frame_z", "none"])
def test_occlusion_is_the_difference_that_holding_a_region_still_makes(
    made: tuple[Regions, MadeRun], normalisation: str
) -> None:
    regions, run = made
    model = tiny_pretrained(regions.mask, normalisation, gain=3.0)
    effects = occlusion_effects(model, run, STARTS[:1], regions)
    codes = run.codes.copy()
    at = regions.of_voxel == 2
    codes[:4, at] = np.round(codes[:4, at].astype(np.float32).mean(axis=0))
    (whole,) = batches(model, run, STARTS[:1], 1)
    (without,) = batches(model, MadeRun(codes, run.scale, run.stats), STARTS[:1], 1)
    with torch.no_grad():
        expected = model.features(volume_of(model, whole)) - model.features(volume_of(model, without))
    np.testing.assert_allclose(effects[2], expected[0].numpy(), atol=2e-4 * expected.abs().max())
    assert expected.abs().max() > 1e-6


def test_gradients_refuse_a_normalisation_that_mixes_voxels(made: tuple[Regions, MadeRun]) -> None:
    regions, run = made
    with pytest.raises(DataError, match="use occlusion"):
        gradient_effects(tiny_pretrained(regions.mask, "frame_z"), run, STARTS, regions)


def test_reconstruction_error_of_a_still_guess_is_one_and_of_the_truth_zero(made: tuple[Regions, MadeRun]) -> None:
    regions, run = made
    model = tiny_pretrained(regions.mask)

    def guess(kind: str):
        def reconstruct(volume, ratio=None, seed=0):
            hidden = torch.ones((len(volume), *volume.shape[2:]), dtype=torch.bool)
            found = volume if kind == "truth" else volume.mean(dim=-1, keepdim=True).expand_as(volume)
            return type("R", (), {"volume": found, "hidden": hidden})()

        return reconstruct

    for kind, expected in (("truth", 0.0), ("still", 1.0)):
        model.reconstruct = guess(kind)  # type: ignore[method-assign]
        error = reconstruction_error(model, run, STARTS, regions)
        np.testing.assert_allclose(error[:4], expected, atol=1e-9)
        assert np.isnan(error[4])  # it does not change: nothing to predict


def test_reconstruction_error_runs_on_the_model_itself(made: tuple[Regions, MadeRun]) -> None:
    regions, run = made
    one, again = (reconstruction_error(tiny_pretrained(regions.mask), run, STARTS, regions, 0.5, 3) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert np.isfinite(one[:4]).all()


def _weighed(effect: float, seed: int, permutations: int = 200, units: int = 60, num_regions: int = 30):
    """Features are sums of what regions add; region 7 adds the class along feature 2, and the head is fitted."""
    random = np.random.default_rng(seed)
    truth = np.arange(2 * units) % 2
    by_region = random.normal(size=(2 * units, num_regions, 6)) / np.sqrt(num_regions)
    by_region[:, 7, 2] += effect * (2 * truth - 1)
    head = linear_head(Part(FIT, by_region[:units].sum(axis=1), truth[:units], np.arange(units)), CLASSES, 1.0, 0)
    group = np.array([f"s{i}" for i in range(units)], dtype=object)
    return weigh_regions(by_region[units:], head, truth[units:], group, CLASSES, permutations, seed)


def test_the_planted_region_is_first_and_passes_over_all_regions() -> None:
    found = _weighed(1.0, 0)
    assert found.rank[7] == 1
    assert found.p_fwe[7] < 0.05


def test_regions_beside_a_planted_one_are_not_found_with_it() -> None:
    """Over 20 studies with one region that carries everything, another passes over all regions about once."""
    studies = [_weighed(1.0, seed, 199) for seed in range(20)]
    others = np.arange(30) != 7
    assert sum((study.p_fwe[others] <= 0.05).any() for study in studies) <= 4
    assert 0.02 <= np.mean([study.p[others] <= 0.05 for study in studies]) <= 0.09


def test_without_an_effect_p_values_are_uniform_and_nothing_passes() -> None:
    """Over 20 null studies of 30 regions: a mean p of a half, 5 % below 0.05, and about one false find over all."""
    studies = [_weighed(0.0, seed, 99) for seed in range(20)]
    p = np.concatenate([study.p for study in studies])
    assert abs(p.mean() - 0.5) < 0.06
    assert 0.01 <= (p <= 0.05).mean() <= 0.10
    assert sum((study.p_fwe <= 0.05).any() for study in studies) <= 4


def test_the_statistic_is_in_favour_of_the_truth_whatever_the_classes_share() -> None:
    truth, group = np.array([0, 1, 1, 1]), np.array(list("abcd"), dtype=object)
    head = np.array([[-0.5], [0.5]])
    np.testing.assert_allclose(contrast(truth, CLASSES).sum(axis=0), 0, atol=1e-12)
    shift = np.ones((4, 1, 1))  # moves every unit's scores alike
    assert weigh_regions(shift, head, truth, group, CLASSES, 0, 0).statistic[0] == pytest.approx(0)
    helping = (2.0 * truth - 1)[:, None, None]
    assert weigh_regions(helping, head, truth, group, CLASSES, 0, 0).statistic[0] > 0
    values = contrast(np.array([1.0, 2.0, 6.0]), VALUES)
    assert values.mean() == pytest.approx(0)


def test_a_two_class_head_scores_both_classes() -> None:
    random, truth = np.random.default_rng(1), np.arange(60) % 2
    vectors = random.normal(size=(60, 6))
    vectors[:, 2] += 2 * truth
    head = linear_head(Part(FIT, vectors, truth, np.arange(60)), CLASSES, 1.0, 0)
    np.testing.assert_allclose(head[0], -head[1])
    assert np.abs(head[1]).argmax() == 2


def test_permuting_keeps_a_group_together() -> None:
    truth = np.array([0, 1, 2, 5, 6, 7, 9])
    group = np.array(["a", "a", "a", "b", "b", "b", "c"], dtype=object)
    seen = {tuple(permuted_groups(truth, group, np.random.default_rng(seed))) for seed in range(20)}
    assert seen == {(0, 1, 2, 5, 6, 7, 9), (5, 6, 7, 0, 1, 2, 9)}


def test_no_permutations_give_no_p_values() -> None:
    assert np.isnan(evidence(np.array([1.0, 2.0]), np.empty((0, 2))).p).all()


def _atlas(folder: Path) -> tuple[Path, Path]:
    """Two regions left and right of the midline, on a coarse LAS grid."""
    affine = np.diag([-8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = [80, -110, -70]
    x = affine[0, 3] - 8 * np.arange(21)
    values = np.broadcast_to(np.where(x < 0, 1, 2)[:, None, None], (21, 24, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), folder / "atlas.nii.gz")
    (folder / "labels.tsv").write_text("index\tname\tgroup\n1\tHalf_L\thalves\n2\tHalf_R\thalves\n9\tGone\t\n")
    return folder / "atlas.nii.gz", folder / "labels.tsv"


def test_maps_lie_where_the_regions_lie(tmp_path: Path) -> None:
    regions = load_regions(*_atlas(tmp_path), brain_mask())
    assert regions.name == ["Half_L", "Half_R"]
    found = evidence(np.array([2.0, -1.0]), np.random.default_rng(0).normal(size=(50, 2)))
    names, statistic = regions.grouped(found.statistic)
    by_group = evidence(statistic, regions.grouped(found.null)[1])
    table = save_attribution(Attribution(regions, found, names, by_group, 12, "test"), tmp_path / "out", "made")
    assert table["region"].tolist() == ["Half_L", "Half_R"]
    image = nib.load(tmp_path / "out" / "attribution.nii.gz")
    np.testing.assert_array_equal(image.affine, GRID_AFFINE)
    left = image.get_fdata()[36, 60, 45]
    assert GRID_AFFINE[0, 3] + 2 * 36 < 0
    assert left == pytest.approx(found.z[0], rel=1e-5)
    for name in ("regions.csv", "groups.csv", "regions.png", "groups.png", "attribution_glass.png", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_labels_that_the_table_lacks_are_named(tmp_path: Path) -> None:
    atlas, labels = _atlas(tmp_path)
    labels.write_text("index\tname\n1\tHalf_L\n")
    with pytest.raises(DataError, match="labels 2 of"):
        load_regions(atlas, labels, brain_mask())


def test_pieces_hold_every_stored_voxel_of_every_region_once(made: tuple[Regions, MadeRun]) -> None:
    regions, _ = made
    pieces = regions.pieces([24, 24, 24])
    voxels = np.bincount(pieces.region, np.asarray((pieces.mean > 0).sum(axis=1)).ravel())
    np.testing.assert_array_equal(voxels, regions.num_voxels)
    assert pieces.mean.sum() == pytest.approx(len(regions.of_voxel) / 64)


def test_clips_are_spread_over_the_run() -> None:
    assert spread(np.arange(0, 100, 10), 3).tolist() == [0, 40, 90]
    assert spread([5, 7], 4).tolist() == [5, 7]
    assert spread([5, 7], 0).tolist() == [5, 7]


NUM_UNITS, NUM_REGIONS, WIDTH = 60, 4, 5


@dataclass
class MadeStudy:
    """A task on made features, one person in four of class b, and what `attribute` is given."""

    units: Units
    vectors: np.ndarray
    effects: np.ndarray
    split: Split
    regions: Regions

    def attribute(self, book: Path | None = None, final: bool = False, balanced: bool = False) -> Attribution:
        task = TaskConfig(name="made", features={"brain": "brain.npz"}, balanced=balanced)
        settings = AttributionSettings(permutations=20, final=final)
        model = SimpleNamespace(identity="0" * 64)
        return attribute(model, task, None, self.regions, settings, book)  # type: ignore[arg-type]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> MadeStudy:
    random, names = np.random.default_rng(5), np.array([f"s{i:02}" for i in range(NUM_UNITS)], dtype=object)
    truth = (np.arange(NUM_UNITS) % 4 == 0).astype(np.int64)
    vectors = random.normal(size=(NUM_UNITS, WIDTH)) + 0.5 * truth[:, None]
    effects = random.normal(size=(NUM_UNITS, NUM_REGIONS, WIDTH))
    units = Units(names, names, names, truth, CLASSES)
    split = holdout(dict(zip(names, truth.tolist(), strict=True)), "subject")
    mask = np.zeros(GRID_SHAPE, dtype=bool)
    mask[40:44, 48, 48] = True
    regions = Regions([f"r{i}" for i in range(NUM_REGIONS)], [""] * NUM_REGIONS, np.arange(NUM_REGIONS), mask)
    made = MadeStudy(units, vectors, effects, split, regions)
    representation = Representation(np.arange(NUM_UNITS), lambda rows: vectors[rows])
    source = SimpleNamespace(
        clips={0: SimpleNamespace(release="0" * 64)}, representation=lambda units: lambda seed: representation
    )

    def prepared(task: TaskConfig) -> SimpleNamespace:
        sources = SimpleNamespace(features=[source], units=None)
        return SimpleNamespace(sources=sources, units=made.units, splits={0: made.split})

    monkeypatch.setattr(task_module, "task_units", prepared)
    monkeypatch.setattr(task_module, "unit_effects", lambda model, clips, representation, rows, *rest: effects[rows])
    return made


@pytest.mark.parametrize("balanced", [False, True])
def test_the_head_explained_is_the_one_evaluated(study: MadeStudy, balanced: bool) -> None:
    found = study.attribute(balanced=balanced).by_region.statistic
    (fold,) = study.split.folds

    def part(side: str, groups: tuple[str, ...]) -> tuple[np.ndarray, Part]:
        rows = np.flatnonzero(np.isin(study.units.group, list(groups)))
        return rows, Part(side, study.vectors[rows], study.units.truth[rows], rows)

    (_, fit), (rows, val) = part(FIT, fold.fit), part(VAL, fold.choices[0].val)
    fitted = choose_and_fit(LinearProbe(balanced=balanced), [(fit, val)], fit, CLASSES, 0)
    other = choose_and_fit(LinearProbe(balanced=not balanced), [(fit, val)], fit, CLASSES, 0)

    def statistic(model) -> np.ndarray:
        (weights,), _ = model.direction()
        favour = contrast(study.units.truth[rows], CLASSES)
        return np.einsum("ure,uk,ke->r", study.effects[rows], favour, np.stack([-weights, weights]) / 2) / len(rows)

    np.testing.assert_allclose(found, statistic(fitted.fitted), rtol=1e-6)
    assert np.abs(statistic(other.fitted) - found).max() > 1e-3 * np.abs(found).max()


def test_an_atlas_without_groups_is_weighed_and_saved(study: MadeStudy, tmp_path: Path) -> None:
    found = study.attribute()
    assert found.group_names == []
    assert found.by_group.null.shape == (20, 0)
    assert len(found.by_group.p) == len(found.by_group.p_fwe) == 0
    assert len(save_attribution(found, tmp_path, "made")) == NUM_REGIONS
    assert (tmp_path / "report.html").stat().st_size > 0
    assert not (tmp_path / "groups.png").exists()


def test_units_that_are_all_alike_are_refused_before_the_test_set_is_opened(study: MadeStudy, tmp_path: Path) -> None:
    book, names = tmp_path / "openings.jsonl", study.units.group
    whole = study.split
    study.split = leave_one_out(dict.fromkeys(names, 0), "subject")
    with pytest.raises(DataError, match=r"the 1 test units do not differ .*split\.method=k_fold"):
        study.attribute(book, final=True)
    study.split = whole
    test = np.isin(names, list(whole.folds[0].test))
    study.units.truth[test] = 1
    with pytest.raises(DataError, match=r"holdout: the 1\d test units do not differ .*different classes"):
        study.attribute(book, final=True)
    assert not book.exists()
    study.units.truth[np.flatnonzero(test)[:4]] = 0
    assert study.attribute(book, final=True).side == "test"
    assert len(book.read_text().splitlines()) == 1


def test_one_person_has_errors_without_intervals(study: MadeStudy, tmp_path: Path) -> None:
    errors = np.array([[0.5, 0.25, np.nan, 1.0]])
    table = save_errors(errors, study.regions, tmp_path, "made")
    assert table["error"].tolist()[:3] == [0.25, 0.5, 1.0]
    assert table[["low", "high"]].isna().all(axis=None)
    assert "One person, so no intervals" in (tmp_path / "report.html").read_text()
    two = save_errors(np.concatenate([errors, errors + 0.1]), study.regions, tmp_path, "made")
    assert two.loc[:2, ["low", "high"]].notna().all(axis=None)


@pytest.mark.parametrize(("option", "name"), [("--clips", "clips"), ("--permutations", "permutations")])
def test_a_negative_count_is_refused_before_anything_is_opened(option: str, name: str, tmp_path: Path, capsys) -> None:
    words = ["attribute", "absent", "absent", "--atlas", "absent", "--out", str(tmp_path / "out"), option, "-5"]
    assert cli.main([*words, "--method", "reconstruction"]) == 2
    assert f"{name}=-5: expected a whole number, 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=f"{name}=-5"):
        AttributionSettings(**{name: -5})


def test_a_batch_of_no_clips_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attribute", "absent", "absent", "--atlas", "absent", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--method", "reconstruction", "--batch-size", "0"]) == 2
    assert "--batch-size 0: expected 1 or more" in capsys.readouterr().err


def test_the_example_of_the_help_is_a_task() -> None:
    (line,) = (line for line in command.__doc__.splitlines() if "--task" in line)
    words = line.split()[1:]
    assert all("=" in word or Path(word).is_file() for word in words)
    task = load_task([word for word in words if "=" not in word], [word for word in words if "=" in word])
    assert (task.kind, list(task.features), task.target.column) == ("classification", ["brain"], "sex")
