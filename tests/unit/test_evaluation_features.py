"""A NIfTI run gives the features that its shard gives: one preprocessing, one decoding, from file to embedding."""

import dataclasses
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import fmri_scale
from fmri_scale import cli
from fmri_scale.config import DataConfig
from fmri_scale.data import decode, validation_clips
from fmri_scale.errors import DataError
from fmri_scale.evaluation.corpus_features import corpus_runs
from fmri_scale.evaluation.features import clip_batch, clip_starts, clip_volumes, extract, save_features
from fmri_scale.release import Pretrained
from fmri_scale.release.export import ExportSettings, export
from sharding.build import build_corpus
from sharding.corpus import Corpus, open_corpus
from sharding.discover import find_runs
from sharding.errors import InputError
from sharding.phantom import make_cohort
from sharding.plan import BuildSettings
from sharding.prepare import PreprocessingSettings, prepare_run
from tests.helpers.slim import run_slim
from tests.helpers.tiny_run import tiny_config, write_run

NORMALISATIONS = ("run_z", "voxel_z", "frame_z", "none")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cohort") / "data"
    return list(make_cohort(folder, subjects=2, volumes=24, voxel_mm=4.0, seed=1))


@pytest.fixture(scope="module")
def corpus(cohort, tmp_path_factory) -> Corpus:
    sources, left_out = find_runs([cohort[0].parents[2]])
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    settings = BuildSettings(preprocessing=PreprocessingSettings(min_frames=6))
    return build_corpus(sources, left_out, out, settings).corpus


@pytest.fixture(scope="module")
def releases(corpus, tmp_path_factory) -> dict[str, Path]:
    """One model of one set of weights for each normalisation, with the corpus' own settings."""
    folder = tmp_path_factory.mktemp("releases")
    made = {}
    for normalisation in NORMALISATIONS:
        config = tiny_config()
        config.data.normalisation = normalisation
        checkpoint = write_run(folder / normalisation, config, corpus=corpus.path)
        made[normalisation] = export(checkpoint.path, folder / f"release-{normalisation}", ExportSettings())
    return made


@pytest.fixture(scope="module")
def model(releases) -> Pretrained:
    return fmri_scale.from_pretrained(releases["run_z"])


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_features_of_a_file_equal_those_of_its_shard(normalisation, cohort, corpus, releases):
    model = fmri_scale.from_pretrained(releases[normalisation])
    from_files = {run.key: run for run in extract(model, [cohort[0].parents[2]], batch_size=2)}
    prepared = {
        k: prepare_run(run.file, model.preprocessing.settings, mask=model.mask) for k, run in from_files.items()
    }
    place = torch.from_numpy(corpus.mask_index)
    compared = 0
    config = DataConfig(normalisation=normalisation)
    for batch in validation_clips(corpus, config, num_frames=6, micro_batch=1, split="all"):
        key, start = batch.keys[0].rpartition("__")[0], int(batch.start_frame[0])
        shard_volume = decode(batch, normalisation, place)
        # the loader's clips may start at other frames than those of the command, so the same one is cut out here
        file_volume = next(clip_volumes(model, prepared[key], np.array([start]), 1))
        assert torch.equal(file_volume, shard_volume)
        with torch.inference_mode():
            vectors = model.features(torch.cat([file_volume, shard_volume])).numpy()
        assert np.array_equal(vectors[0], vectors[1])
        if start in (run := from_files[key]).start_frames:
            assert np.allclose(run.clips[run.start_frames == start][0], vectors[1], rtol=1e-6, atol=1e-6)
        compared += 1
    assert compared >= 2 * len(from_files)
    assert len(from_files) == len(cohort)


def test_vectors_do_not_depend_on_the_batch_and_their_mean_is_the_runs(model, cohort):
    one = extract(model, [cohort[0]], batch_size=1)[0]
    many = extract(model, [cohort[0]], batch_size=64)[0]
    assert one.clips.dtype == np.float32
    assert one.clips.shape == (one.frames // 6, model.width)
    assert np.allclose(one.clips, many.clips, rtol=1e-5, atol=1e-6)
    assert np.allclose(one.mean, one.clips.mean(0))
    assert one.start_frames.tolist() == list(range(0, one.frames - 5, 6))
    assert one.tr == 0.8
    assert np.ptp(one.clips, axis=0).max() > 0


def test_stride_overlaps_clips(model, cohort):
    apart, dense = (extract(model, [cohort[0]], stride=stride)[0] for stride in (None, 3))
    assert dense.start_frames.tolist() == list(range(0, dense.frames - 5, 3))
    assert np.allclose(dense.clips[::2][: len(apart.clips)], apart.clips, atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "clip", "stride", "expected"),
    [(20, 20, None, [0]), (19, 20, None, []), (45, 20, None, [0, 20]), (45, 20, 5, [0, 5, 10, 15, 20, 25])],
)
def test_clips_are_the_whole_ones(frames, clip, stride, expected):
    assert clip_starts(frames, clip, stride).tolist() == expected


def test_orientation_on_disk_does_not_matter(model, cohort, tmp_path):
    image = nib.load(cohort[0])
    flipped = image.as_reoriented(np.array([[0, -1], [2, 1], [1, -1]]))
    shutil.copy(cohort[0].with_name(cohort[0].name.replace(".nii.gz", ".json")), tmp_path)
    nib.save(flipped, tmp_path / cohort[0].name)
    there, here = extract(model, [cohort[0]])[0], extract(model, [tmp_path / cohort[0].name])[0]
    assert np.array_equal(there.clips, here.clips)


def test_a_batch_holds_what_the_loader_hands_over(model, cohort, corpus):
    run = prepare_run(cohort[0], model.preprocessing.settings, mask=model.mask)
    mine = clip_batch(run, np.array([0, 6]), 6)
    source = find_runs([cohort[0].parents[2]])[0][0]
    assert source.path == cohort[0]
    for batch in validation_clips(corpus, DataConfig(normalisation="voxel_z"), 6, 1, split="all"):
        if f"sub-{source.subject}" in batch.keys[0]:
            for name in ("scale", "stats", "unit", "mean", "sd", "background"):
                theirs = getattr(batch, name)[0]
                assert torch.equal(getattr(mine, name)[1], theirs), name
                assert getattr(mine, name).dtype == theirs.dtype
            return
    pytest.fail("the corpus holds no clip of this person")


def test_command_writes_what_python_gives(model, releases, cohort, tmp_path, capsys):
    out = tmp_path / "features.npz"
    command = ["features", str(releases["run_z"]), *map(str, cohort), "--out", str(out), "--device", "cpu"]
    assert cli.main([*command, "--batch-size", "3"]) == 0
    assert "2 runs" in capsys.readouterr().out
    runs = extract(model, cohort, batch_size=3)
    with np.load(out, allow_pickle=False) as found:
        arrays = dict(found)
    assert np.array_equal(arrays["clip_features"], np.concatenate([run.clips for run in runs]))
    assert np.array_equal(arrays["run_features"], np.stack([run.mean for run in runs]))
    assert arrays["clip_run"].tolist() == [r for r, run in enumerate(runs) for _ in run.clips]
    assert np.allclose(arrays["clip_start_s"], arrays["clip_start_frame"] * 0.8)
    assert arrays["run_key"].tolist() == [run.key for run in runs]
    assert arrays["run_file"].tolist() == [str(path) for path in cohort]
    assert str(arrays["release"]) == model.identity
    assert int(arrays["clip_frames"]) == 6
    assert cli.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


def test_the_lines_of_the_model_card_run(releases, cohort, capsys):
    """The snippet is taken out of the text; only the folder and the file are put in."""
    text = (releases["run_z"] / "README.md").read_text()
    snippet = text.split("```python\n")[1].split("```")[0]
    assert '"FOLDER"' in snippet
    assert '"sub-01_task-rest_space-MNI152NLin6Asym_bold.nii.gz"' in snippet
    snippet = snippet.replace('"FOLDER"', repr(str(releases["run_z"])))
    exec(snippet.replace('"sub-01_task-rest_space-MNI152NLin6Asym_bold.nii.gz"', repr(str(cohort[0]))), {})
    assert "(16,)" in capsys.readouterr().out


def test_command_needs_the_slim_core_only(model, releases, cohort, tmp_path):
    body = """
import sys
from fmri_scale import cli
sys.exit(cli.main(sys.argv[1:]))
"""
    out = tmp_path / "features.npz"
    run_slim(body, "features", releases["run_z"], cohort[0], "--out", out, "--device", "cpu")
    with np.load(out) as found:
        assert np.allclose(found["clip_features"], extract(model, [cohort[0]])[0].clips, rtol=1e-5, atol=1e-6)


def test_command_names_the_runs_it_leaves_out(releases, cohort, tmp_path, capsys):
    broken = tmp_path / "sub-9_task-rest_bold.nii.gz"
    broken.write_text("not an image")
    out = tmp_path / "features.npz"
    start = ["features", str(releases["run_z"]), "--out", str(out), "--device", "cpu"]
    assert cli.main([*start, str(cohort[0]), str(broken)]) == 1
    error = capsys.readouterr().err
    assert "[2/2] sub-9_task-rest_bold.nii.gz: left out: " in error
    assert str(broken) in error
    with np.load(out) as found:
        assert found["run_file"].tolist() == [str(cohort[0])]
    out.unlink()
    assert cli.main([*start, str(broken)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not out.exists()


def native_space(path: Path, like: Path) -> Path:
    """Write a copy of an image that says it lies in scanner space."""
    image = nib.load(like)
    copy = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    copy.set_sform(image.affine, code=1)
    copy.set_qform(image.affine, code=1)
    nib.save(copy, path)
    return path


def test_bad_input_is_named(model, cohort, tmp_path):
    with pytest.raises(InputError, match=r"none\.nii\.gz"):
        extract(model, [tmp_path / "none.nii.gz"])
    volume = nib.load(cohort[0])
    short = tmp_path / "sub-1_space-MNI152_bold.nii.gz"
    nib.save(volume.slicer[..., :2], short)
    with pytest.raises(InputError, match=r"sub-1_space-MNI152_bold\.nii\.gz"):
        extract(model, [short])
    native = native_space(tmp_path / "sub-2_bold.nii.gz", cohort[0])
    with pytest.raises(InputError, match="--assume-mni"):
        extract(model, [native])
    assert extract(model, [native], assume_mni=True)[0].space == "assumed"
    with pytest.raises(DataError, match="stride of 0 frames"):
        extract(model, [cohort[0]], stride=0)


def test_a_run_shorter_than_a_clip_is_named(releases, cohort, tmp_path):
    """A corpus may keep runs shorter than the clip of a model trained on its longer ones."""
    model = fmri_scale.from_pretrained(releases["run_z"])
    settings = dataclasses.replace(model.preprocessing.settings, min_frames=2)
    model.preprocessing = dataclasses.replace(model.preprocessing, settings=settings)
    few = tmp_path / "sub-1_space-MNI152_bold.nii.gz"
    nib.save(nib.load(cohort[0]).slicer[..., :5], few)
    with pytest.raises(DataError, match=r"sub-1_space-MNI152_bold\.nii\.gz: \d frames .* fewer than the 6"):
        extract(model, [few], tr=0.8)


@pytest.mark.parametrize("name", ["features.csv", "none/features.npz"])
def test_an_output_that_cannot_be_is_refused_before_the_work(releases, cohort, tmp_path, name, capsys):
    assert cli.main(["features", str(releases["run_z"]), str(cohort[0]), "--out", str(tmp_path / name)]) == 2
    assert name.split("/")[-1] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_saving_is_whole_or_not_at_all(model, cohort, tmp_path, monkeypatch):
    runs = extract(model, [cohort[0]])

    def full_disk(*_args, **_arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(DataError, match="No space left"):
        save_features(runs, model, tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


def test_the_corpus_of_the_release_is_the_one_that_was_built(releases, corpus):
    record = fmri_scale.from_pretrained(releases["run_z"]).record
    assert record["data"]["corpus_id"] == open_corpus(corpus.path).corpus_id
    assert sum(entry["frames"] for entry in record["data"]["datasets"].values()) == record["data"]["totals"]["frames"]


def test_features_of_a_corpus_equal_those_of_its_files(cohort, corpus, model, tmp_path):
    from_files = {run.key: run for run in extract(model, [cohort[0].parents[2]], batch_size=2)}
    out = tmp_path / "corpus.npz"
    assert cli.main(["features", str(model.path), str(corpus.path), "--batch-size", "2", "--out", str(out)]) == 0
    found = np.load(out)
    assert sorted(found["run_key"]) == sorted(from_files)
    for number, key in enumerate(found["run_key"]):
        np.testing.assert_array_equal(found["clip_features"][found["clip_run"] == number], from_files[key].clips)


def test_tokens_average_to_the_features(cohort, model, tmp_path):
    out = tmp_path / "tokens.npz"
    assert cli.main(["features", str(model.path), str(cohort[0]), "--tokens", "--out", str(out)]) == 0
    found = np.load(out)
    assert found["clip_tokens"].shape[0] == len(found["clip_features"])
    np.testing.assert_allclose(found["clip_tokens"].mean(axis=1), found["clip_features"], atol=1e-6)


def test_a_corpus_of_another_mask_is_refused(model, tmp_path):
    from tests.helpers.corpora import Segment, write_corpus

    write_corpus(tmp_path / "c", [Segment(20)])
    with pytest.raises(DataError, match="its mask is not the model's"):
        corpus_runs(model, open_corpus(tmp_path / "c"))
