"""Series cleaned on request: what is regressed and filtered goes, what is not stays, time stays regular."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.signal import clean

from sharding import regress, store
from sharding.confounds import components, displacement, load
from sharding.errors import InputError
from sharding.format import GRID_SHAPE
from sharding.mask import brain_mask
from sharding.prepare import PreparedRun, PreprocessingSettings, prepare_run
from tests.helpers.images import head, save, with_header
from tests.helpers.trees import confounds, put

VOLUMES = 80
TR = 1.0
TIMES = np.arange(VOLUMES) * TR

SPARSE = np.zeros(GRID_SHAPE, dtype=bool)
SPARSE[::4, ::4, ::4] = brain_mask()[::4, ::4, ::4]
"Every fourth voxel: cleaning is of each by itself."


def settings(**options) -> PreprocessingSettings:
    return PreprocessingSettings(target_tr=None, **options)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("confounds")
    put(folder, "run_desc-confounds_timeseries.json")
    return put(folder, "run_desc-confounds_timeseries.tsv", confounds(VOLUMES, moved=(30, 31)))


@pytest.fixture(scope="module")
def columns(table: Path) -> np.ndarray:
    return np.genfromtxt(table, delimiter="\t", names=True)


def image_of(course: np.ndarray) -> nib.Nifti1Image:
    """A head whose voxels follow a course around their level, with a little noise."""
    still = np.asarray(head(voxel_mm=12.0, volumes=1).dataobj)
    noise = np.random.default_rng(0).standard_normal((*still.shape[:3], VOLUMES))
    data = still * (1 + 0.02 * course + 0.001 * noise)
    return with_header(nib.Nifti1Image(data.astype(np.float32), head(voxel_mm=12.0, volumes=1).affine), TR)


def course_of(run: PreparedRun) -> np.ndarray:
    """Mean course of the brain as stored, in multiples of 2 % of its level."""
    frames = run.frames(0, run.num_frames)
    bright = frames.mean(axis=0) > 300
    return (frames[:, bright] / frames[:, bright].mean(axis=0) - 1).mean(axis=1) / 0.02


def prepared(course: np.ndarray, folder: Path, **options) -> PreparedRun:
    path = save(image_of(course), folder)
    table = options.pop("table", None)
    return prepare_run(path, settings(**options), confounds_path=table, mask=SPARSE)


def test_confounds_are_taken_out_and_the_rest_stays(tmp_path: Path, table: Path, columns: np.ndarray) -> None:
    signal = np.sin(2 * np.pi * 0.1 * TIMES)
    moved = columns["trans_x"] / columns["trans_x"].std()
    plain = prepared(signal + moved, tmp_path)
    cleaned = prepared(signal + moved, tmp_path, table=table, confounds="motion")
    assert abs(np.corrcoef(course_of(plain), moved)[0, 1]) > 0.5
    assert abs(np.corrcoef(course_of(cleaned), moved)[0, 1]) < 0.02
    # 24 columns of noise take 24 of 80 dimensions from the signal too
    assert np.corrcoef(course_of(cleaned), signal)[0, 1] > 0.7
    assert cleaned.mean == pytest.approx(plain.mean, rel=1e-4)


def test_regression_is_that_of_least_squares(tmp_path: Path, table: Path, columns: np.ndarray) -> None:
    signal = np.random.default_rng(1).standard_normal(VOLUMES)
    plain = prepared(signal, tmp_path)
    cleaned = prepared(signal, tmp_path, table=table, confounds="global_signal")
    before, after = plain.frames(0, VOLUMES).astype(np.float64), cleaned.frames(0, VOLUMES)
    design = np.stack([columns["global_signal"], np.ones(VOLUMES)], axis=1)
    left = before - design @ np.linalg.lstsq(design, before, rcond=None)[0] + before.mean(axis=0)
    np.testing.assert_allclose(after, np.maximum(left, 0), atol=2e-3 * left.max())


@pytest.mark.parametrize(
    ("options", "kept", "lost"),
    [({"high_pass_hz": 0.05}, 0.2, 0.01), ({"low_pass_hz": 0.1}, 0.03, 0.3)],
)
def test_filters_take_what_they_say(tmp_path: Path, options: dict, kept: float, lost: float) -> None:
    stays, goes = (np.sin(2 * np.pi * frequency * TIMES) for frequency in (kept, lost))
    course = course_of(prepared(stays + goes, tmp_path, **options))[10:-10]
    stays, goes = stays[10:-10], goes[10:-10]
    fit = np.linalg.lstsq(np.stack([stays, goes, np.ones(len(stays))], axis=1), course, rcond=None)[0]
    assert fit[0] == pytest.approx(1, abs=0.05)
    assert abs(fit[1]) < 0.1


def test_cleaning_is_that_of_nilearn(tmp_path: Path, table: Path) -> None:
    """Filters are applied to many series at a time, which nilearn's own clean does not; the outcome is the same."""
    wanted = settings(confounds="motion", high_pass_hz=0.02, low_pass_hz=0.2)
    found = load(table, wanted, VOLUMES)
    series = np.random.default_rng(2).standard_normal((VOLUMES, 50)).astype(np.float32) + 100
    frames = store.FrameStore(VOLUMES, 50)
    frames.append(series)
    regress.clean_store(frames, found, wanted, TR, "run")
    ours = frames.read(0, VOLUMES) - series.mean(axis=0)
    theirs = clean(
        series.astype(np.float64), confounds=found.columns, high_pass=0.02, low_pass=0.2, t_r=TR, standardize=None
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # of what is stored in float32 around 100


def test_scrubbed_frames_are_filled_in_and_counted(tmp_path: Path, table: Path) -> None:
    slow = np.sin(2 * np.pi * 0.02 * TIMES)
    spikes = np.zeros(VOLUMES)
    spikes[[30, 31]] = 8
    run = prepared(slow + spikes, tmp_path, table=table, scrub_fd_mm=0.5)
    assert run.num_frames == VOLUMES
    assert run.scrubbed == 2
    course = course_of(run)
    assert course.max() < 1.5
    np.testing.assert_allclose(course[30:32], np.interp([30, 31], [29, 32], course[[29, 32]]), atol=1e-3)
    assert course_of(prepared(slow + spikes, tmp_path)).max() > 6


def test_blocks_and_scratch_files_change_no_bit(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"table": table, "confounds": "motion,wm_csf", "high_pass_hz": 0.01, "scrub_fd_mm": 0.5}
    course = np.sin(2 * np.pi * 0.1 * TIMES)
    whole = prepared(course, tmp_path, **options)
    monkeypatch.setattr(store, "MEMORY_BYTES", 0)
    spilled = prepared(course, tmp_path, **options)
    np.testing.assert_array_equal(spilled.codes, whole.codes)
    monkeypatch.setattr(regress, "BLOCK_BYTES", 4 * VOLUMES * 500)
    blocks = prepared(course, tmp_path, **options)
    np.testing.assert_allclose(blocks.frames(0, VOLUMES), whole.frames(0, VOLUMES), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"confounds": "motion"}, "has no table of confounds beside it"),
        ({"high_pass_hz": 0.6}, r"a filter at 0.6 Hz is beyond the 0.5 Hz that TR 1 s can hold"),
    ],
)
def test_cleaning_that_cannot_be_done_is_refused(tmp_path: Path, options: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        prepared(np.zeros(VOLUMES), tmp_path, **options)


def test_table_of_another_run_is_refused(tmp_path: Path) -> None:
    table = put(tmp_path, "x_desc-confounds_timeseries.tsv", confounds(VOLUMES - 1))
    put(tmp_path, "x_desc-confounds_timeseries.json")
    with pytest.raises(InputError, match=rf"{table}: 79 rows for an image of 80 volumes; is it of this run\?"):
        prepared(np.zeros(VOLUMES), tmp_path, table=table, confounds="motion")


@pytest.mark.parametrize("content", ["", "a\tb\n1\t2\n", "\x00\x01"])
def test_table_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    table = put(tmp_path, "x_desc-confounds_timeseries.tsv", content)
    with pytest.raises(InputError, match=f"{table}: confounds cannot be taken from it"):
        load(table, settings(confounds="motion"), VOLUMES)


def test_scrubbing_that_leaves_little_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "x_desc-confounds_timeseries.json")
    moved = tuple(range(0, VOLUMES, 4))  # the stretches between are too short to be kept
    table = put(tmp_path, "x_desc-confounds_timeseries.tsv", confounds(VOLUMES, moved))
    with pytest.raises(InputError, match="scrubbing leaves 0 of 80 frames"):
        prepared(np.zeros(VOLUMES), tmp_path, table=table, scrub_fd_mm=0.5)


@pytest.mark.parametrize("text", ["magic", "motion,magic", "scrub"])
def test_strategy_that_is_unknown_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is unknown; expected simple or compcor, or any of motion"):
        components(text)


def test_displacement_comes_from_what_there_is(tmp_path: Path, table: Path, columns: np.ndarray) -> None:
    found = displacement(table, None)
    assert found == (pytest.approx(np.nanmean(columns["framewise_displacement"])), "confounds")
    motion = put(tmp_path, "Movement_RelativeRMS.txt", "0\n0.1\n0.5\n")
    assert displacement(None, motion) == (pytest.approx(0.2), "motion")
    assert displacement(None, None) == (None, "")
    value, said = displacement(None, put(tmp_path, "bad.txt", "far\n"))
    assert value is None
    assert said.startswith("unreadable (")
