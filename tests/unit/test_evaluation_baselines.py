"""Connectivity finds planted coupling and nothing else; series of a corpus and of NIfTI runs are what they claim."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.signal import clean

from fmri_scale.errors import DataError
from fmri_scale.evaluation.baselines import CorpusSeries, ImageSeries
from fmri_scale.evaluation.baselines.connectivity import TangentSpace, connectomes
from fmri_scale.evaluation.baselines.series import Band, frames_between
from fmri_scale.evaluation.events import blocks_of_clips, read_blocks
from fmri_scale.evaluation.ranking import Identity, Ranks, chance_precision, chance_top_k, ranks, reidentify
from fmri_scale.evaluation.stored import stored_runs
from fmri_scale.evaluation.tasks import load_task
from fmri_scale.evaluation.tasks.run import run_task
from sharding.corpus import open_corpus
from sharding.format import GRID_AFFINE, GRID_SHAPE
from tests.helpers.corpora import Segment, small_mask, write_corpus


def _save(path: Path, values: np.ndarray, affine: np.ndarray, tr: float = 1.0) -> Path:
    image = nib.Nifti1Image(values, affine)
    if values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
        image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


def _cohort(folder: Path, coupling: float, num: int = 60, frames: int = 60) -> list[str]:
    """People of two groups; in group 1 regions 1 and 2 share part of their course. Six regions of 8 voxels."""
    random, affine = np.random.default_rng(4), np.diag([4.0, 4.0, 4.0, 1.0])
    labels = np.kron(np.arange(1, 7).reshape(6, 1, 1), np.ones((1, 4, 2), dtype=np.int64)).astype(np.int16)
    _save(folder / "atlas.nii.gz", labels, affine)
    group = np.arange(num) % 2
    (folder / "bold").mkdir()
    for person in range(num):
        course = random.normal(size=(frames, 6))
        course[:, 1] = (
            coupling * group[person] * course[:, 0] + np.sqrt(1 - (coupling * group[person]) ** 2) * course[:, 1]
        )
        voxels = 1000 + 10 * course[:, labels - 1].transpose(1, 2, 3, 0) + random.normal(size=(6, 4, 2, frames))
        _save(folder / "bold" / f"sub-{person:02d}_task-rest_bold.nii.gz", voxels.astype(np.float32), affine)
    rows = "".join(f"{person:02d}\tg{group[person]}\n" for person in range(num))
    (folder / "people.tsv").write_text(f"subject\tgroup\n{rows}")
    return [
        "name=coupling", f"target.table={folder}/people.tsv", "target.column=group", f"baselines.bold={folder}/bold",
        f"baselines.atlas={folder}/atlas.nii.gz", "split.fractions=[0.4,0.2,0.4]", "scoring.draws=300",
        "scoring.seeds=[0]", "baselines.connectivity=[correlation,partial correlation,tangent]",
    ]  # fmt: skip


def test_connectivity_finds_planted_coupling_and_means_do_not(tmp_path: Path) -> None:
    task = load_task([], [*_cohort(tmp_path, 0.8), "baselines.patterns=true"])
    scores = run_task(task, tmp_path / "out", final=True).scores
    for kind in ("correlation", "partial correlation", "tangent"):
        assert scores.get(f"connectivity ({kind})", "auroc").interval.low > 0.7
    means = scores.get("region means", "auroc").interval
    assert means.low <= 0.5 <= means.high


def test_connectivity_finds_nothing_where_nothing_is(tmp_path: Path) -> None:
    scores = run_task(load_task([], _cohort(tmp_path, 0.0)), tmp_path / "out", final=True).scores
    for kind in ("correlation", "partial correlation", "tangent"):
        interval = scores.get(f"connectivity ({kind})", "auroc").interval
        assert interval.low <= 0.5 <= interval.high


def test_tangent_reference_is_fitted_on_the_rows_to_fit_alone() -> None:
    random = np.random.default_rng(0)
    space = TangentSpace()
    space.fit_transform([random.normal(size=(50, 4)) for _ in range(6)])
    new = random.normal(size=(50, 4))
    with_others = space.transform([new, 1e3 * random.normal(size=(50, 4))])
    np.testing.assert_allclose(space.transform([new])[0], with_others[0])


def test_connectome_of_one_person_depends_on_nobody_else() -> None:
    random = np.random.default_rng(1)
    series = [random.normal(size=(40, 5)) for _ in range(3)]
    np.testing.assert_allclose(connectomes("correlation", series)[1], connectomes("correlation", [series[1]])[0])


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    codes: dict[str, np.ndarray] = {}
    folder = tmp_path_factory.mktemp("corpus") / "c"
    write_corpus(folder, [Segment(30), Segment(25)], num_voxels=64, codes=codes)
    return folder, codes


def test_corpus_series_are_means_of_decoded_voxels(
    tmp_path: Path, corpus_folder: tuple[Path, dict[str, np.ndarray]]
) -> None:
    folder, codes = corpus_folder
    labels = np.zeros(GRID_SHAPE, dtype=np.int16)
    labels[40:44, 40:42, 40:44], labels[40:44, 42:44, 40:44] = 7, 3
    labels[0, 0, 0] = 9  # outside the mask: no column
    series = CorpusSeries(open_corpus(folder), _save(tmp_path / "atlas.nii.gz", labels, GRID_AFFINE))
    assert series.labels.tolist() == [3, 7]
    run = series._runs[1]
    at = labels.ravel()[np.flatnonzero(small_mask(64))]
    offset, step = run.scale.astype(np.float64)
    signal = run.unit * (offset + step * codes[str(run.fact("key"))])
    expected = clean(
        np.stack([signal[:, at == k].mean(axis=1) for k in (3, 7)], axis=1), standardize="zscore_sample", t_r=1.0
    )
    np.testing.assert_allclose(series.series(1), expected, atol=2e-4)


def test_stored_runs_give_the_codes_that_were_written(corpus_folder: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, codes = corpus_folder
    run = stored_runs(open_corpus(folder))[0]
    np.testing.assert_array_equal(run.segment(0, run.num_frames), codes[str(run.fact("key"))])
    np.testing.assert_array_equal(run.segment(7, 19), codes[str(run.fact("key"))][7:19])


def test_a_damaged_sample_is_never_used(tmp_path: Path) -> None:
    corpus = open_corpus(write_corpus(tmp_path / "c", [Segment(20)]))
    shard = corpus.shard_path(str(corpus.index["shard"][0]))
    data = bytearray(shard.read_bytes())
    data[int(corpus.index["bold_offset"][0]) + 200] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DataError, match="bold of phantom__sub-00000__000000 is damaged"):
        stored_runs(corpus)[0].segment(0, 5)


def test_image_series_need_a_mask_without_an_atlas(tmp_path: Path) -> None:
    _save(tmp_path / "sub-1_bold.nii.gz", np.ones((4, 4, 4, 5), dtype=np.float32), np.eye(4))
    with pytest.raises(DataError, match=r"baselines\.mask"):
        ImageSeries([tmp_path])


def test_a_band_beyond_what_the_frames_resolve_is_refused() -> None:
    with pytest.raises(DataError, match=r"band to 0\.3 Hz, but frames of 2 s reach 0\.25 Hz"):
        Band(0.01, 0.3).clean(np.zeros((50, 2)), 2.0, "run")
    with pytest.raises(DataError, match=r"run: band from 0\.25 Hz, but frames of 2 s"):
        Band(0.25).clean(np.zeros((50, 2)), 2.0, "run")


@pytest.mark.filterwarnings("ignore:After resampling")
def test_regions_keep_their_column_in_runs_of_other_grids(tmp_path: Path) -> None:
    """Regions of one 2 mm voxel in a row: a 4 mm grid meets every second, which of them depends on its offset."""
    labels = np.zeros((20, 8, 8), dtype=np.int16)
    labels[:16, 2, 2], labels[:, 6, :] = np.arange(2, 18), 40
    atlas = _save(tmp_path / "atlas.nii.gz", labels, np.diag([2.0, 2.0, 2.0, 1.0]))
    random, courses = np.random.default_rng(0), {}
    (tmp_path / "bold").mkdir()
    for person, offset in ((1, 0.0), (2, 2.0)):
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[0, 3] = offset
        voxels = 100 + random.normal(size=(8, 4, 4, 30)).astype(np.float32)
        _save(tmp_path / "bold" / f"sub-{person}_bold.nii.gz", voxels, affine)
        courses[person] = voxels
    series = ImageSeries([tmp_path / "bold"], atlas)
    assert series.labels is not None
    assert series.labels.tolist() == [*range(2, 18), 40]
    for run, (person, first) in enumerate(((1, 2), (2, 3))):
        found, present = series.series(run), [*range(first, 18, 2), 40]
        assert series.labels[found.std(axis=0) > 0].tolist() == present
        for i, label in enumerate(present[:-1]):
            course = found[:, series.labels.tolist().index(label)]
            assert np.corrcoef(course, clean(courses[person][i, 1, 1][:, None])[:, 0])[0, 1] > 0.999
    tangent = TangentSpace().fit_transform([series.series(run) for run in (0, 1)])
    assert np.isfinite(tangent).all()  # regions of zeros do no harm
    assert np.isfinite(connectomes("correlation", [series.series(0)])).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "no such file"),
        (np.ones((4, 4, 4, 2), dtype=np.int16), "expected a 3D image"),
        (np.full((4, 4, 4), -1, dtype=np.int16), "labels from -1 to -1"),
        (np.full((4, 4, 4), 1.5, dtype=np.float32), "not whole numbers"),
        (np.full((4, 4, 4), np.nan, dtype=np.float32), "not whole numbers"),
        (np.zeros((4, 4, 4), dtype=np.int16), "every voxel is 0"),
    ],
)
def test_an_atlas_of_images_that_is_none_says_why(tmp_path: Path, values: np.ndarray | None, message: str) -> None:
    (tmp_path / "bold").mkdir()
    _save(tmp_path / "bold" / "sub-1_bold.nii.gz", np.ones((4, 4, 4, 5), dtype=np.float32), np.eye(4))
    if values is not None:
        _save(tmp_path / "atlas.nii.gz", values, np.eye(4))
    with pytest.raises(DataError, match=rf"atlas\.nii\.gz: .*{message}"):
        ImageSeries([tmp_path / "bold"], tmp_path / "atlas.nii.gz")


def test_an_atlas_or_mask_that_does_not_meet_the_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bold").mkdir()
    _save(tmp_path / "bold" / "sub-1_bold.nii.gz", np.ones((4, 4, 4, 5), dtype=np.float32), np.eye(4))
    away = np.eye(4)
    away[:3, 3] = 900
    atlas = _save(tmp_path / "atlas.nii.gz", np.ones((4, 4, 4), dtype=np.int16), away)
    with pytest.raises(DataError, match=r"sub-1_bold\.nii\.gz: atlas or mask do not fit the run .*share a space"):
        ImageSeries([tmp_path / "bold"], atlas).series(0)
    with pytest.raises(DataError, match=r"mask\.nii\.gz: no such file"):
        ImageSeries([tmp_path / "bold"], mask=tmp_path / "mask.nii.gz")


def test_frames_between_counts_frames_by_their_time() -> None:
    assert frames_between(5.0, 25.0, 2.5, 100) == (2, 10)
    assert frames_between(5.1, 24.9, 2.5, 100) == (3, 10)
    assert frames_between(-3.0, 5.0, 2.5, 100) == (0, 2)
    assert frames_between(240.0, 300.0, 2.5, 100) == (96, 100)


def test_clips_belong_to_the_block_they_lie_in_most(tmp_path: Path) -> None:
    (tmp_path / "sub-1_task-a_run-2_events.tsv").write_text("onset\tduration\ttrial_type\n10\t10\tcat\n20\t10\tdog\n")
    blocks = read_blocks(tmp_path, delay_s=5.0)
    assert [(b.start_s, b.stop_s, b.label, b.run) for b in blocks] == [(15, 25, "cat", "2"), (25, 35, "dog", "2")]
    start = np.array([0.0, 11.0, 12.0, 21.0, 28.0, 33.0])
    run = np.array(["r"] * 6, dtype=object)
    found = blocks_of_clips(blocks, run, np.array(["r", "r"], dtype=object), start, np.full(6, 8.0))
    assert found.tolist() == [-1, 0, 0, 0, 1, -1]
    assert blocks_of_clips(blocks, run, np.array(["x", "x"], dtype=object), start, np.full(6, 8.0)).max() == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onset\tduration\tkind\n0\t1\ta\n", "no column 'trial_type'"),
        ("onset\tduration\ttrial_type\nzero\t1\ta\n", "no numbers"),
        ("onset\tduration\ttrial_type\n0\t0\ta\n", "needs a duration above 0"),
        ("onset\tduration\ttrial_type\n0\t1\tn/a\n", "hold no event with a label"),
    ],
)
def test_events_that_cannot_be_used_say_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sub-1_events.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_blocks(tmp_path)


def test_ranks_and_precision_equal_a_plain_count() -> None:
    random = np.random.default_rng(6)
    similarity = random.normal(size=(40, 15)).round(1)
    right = random.random((40, 15)) < 0.2
    right[:, 3] = True
    allowed = random.random((40, 15)) < 0.8
    allowed[:, 3] = True
    found = ranks(similarity, right, allowed)
    for q in range(40):
        gallery = [c for c in range(15) if allowed[q, c]]
        # Ties count against the query: equal wrong ones stand before.
        gallery.sort(key=lambda c: (-similarity[q, c], right[q, c]))
        hits = [i for i, c in enumerate(gallery, start=1) if right[q, c]]
        assert found.rank[q] == hits[0]
        assert found.precision[q] == pytest.approx(np.mean([(j + 1) / i for j, i in enumerate(hits)]))
        assert (found.gallery[q], found.right[q]) == (len(gallery), len(hits))


def test_a_constant_vector_finds_nobody() -> None:
    found = ranks(np.zeros((3, 5)), np.eye(3, 5, dtype=bool), np.ones((3, 5), dtype=bool))
    assert found.rank.tolist() == [5, 5, 5]


def test_chance_is_what_random_orders_give() -> None:
    random, one = np.random.default_rng(7), np.ones((4000, 12), dtype=bool)
    right = np.zeros((4000, 12), dtype=bool)
    right[:, :3] = True
    found = ranks(random.normal(size=(4000, 12)), right, one)
    assert chance_precision(found) == pytest.approx(found.precision.mean(), abs=0.015)
    assert chance_top_k(found, 2) == pytest.approx((found.rank <= 2).mean(), abs=0.03)
    assert chance_top_k(Ranks(*(np.array([1]) for _ in range(4))), 1) == 1.0


def test_a_query_never_meets_its_own_run_or_session() -> None:
    """Every allowed pair is listed by hand: person a has sessions 1 (two runs) and 2, person b session 1 twice."""
    subject = np.array(["a", "a", "a", "b", "b"], dtype=object)
    session = np.array(["a1", "a1", "a2", "b1", "b1"], dtype=object)
    run = np.array(["a11", "a12", "a21", "b11", "b12"], dtype=object)
    queries, found = reidentify(np.eye(5), Identity(subject, session, run), "session")
    assert queries.tolist() == [0, 1, 2]  # b was there once
    assert found.gallery.tolist() == [3, 3, 4]  # never itself, never its own session's other run
    assert found.right.tolist() == [1, 1, 2]
    queries, found = reidentify(np.eye(5), Identity(subject, session, run), "run")
    assert queries.tolist() == [0, 1, 2, 3, 4]
    assert found.gallery.tolist() == [4] * 5
    clips = [0, 0, 1, 2, 3, 4]  # two vectors of one run: neither may find the other
    queries, found = reidentify(np.eye(6), Identity(subject[clips], session[clips], run[clips]), "run")
    assert found.right[:2].tolist() == [2, 2]
