"""fmri-shards as a person meets it: every bad input is one clear line, exit code 2, and leaves nothing behind."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sharding.cli import build as build_command
from sharding.cli import main
from sharding.corpus import open_corpus
from sharding.preprocessing import PreprocessingSettings
from tests.helpers.images import head, save, with_header
from tests.helpers.trees import MNI6, bids_tree, confounds, fmriprep_run, put


def patched(path: Path, offset: int, data: bytes) -> Path:
    """Overwrite bytes of a .nii header."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)
    return path


def text_file(folder: Path) -> Path:
    (folder / "a.nii.gz").write_text("participant_id\tage\nsub-01\t34\n")
    return folder / "a.nii.gz"


def truncated(folder: Path) -> Path:
    path = save(head(), folder)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def flat(folder: Path) -> Path:
    return save(nib.Nifti1Image(np.asarray(head().dataobj)[..., 0], head().affine), folder)


def all_nan(folder: Path) -> Path:
    return save(
        with_header(nib.Nifti1Image(np.full(head().shape, np.nan, dtype=np.float32), head().affine), 1.0), folder
    )


def tr_of(value: float) -> Callable[[Path], Path]:
    return lambda folder: save(with_header(head(), value), folder)


def singular(folder: Path) -> Path:
    zeros = np.zeros(12, dtype="<f4").tobytes()
    return patched(save(head(), folder, "a.nii"), 280, zeros)  # srow_x, srow_y, srow_z


def nan_affine(folder: Path) -> Path:
    return patched(save(head(), folder, "a.nii"), 280, np.full(12, np.nan, dtype="<f4").tobytes())


def native_space(folder: Path) -> Path:
    return save(with_header(head(), 1.0, space_code=1), folder)


def table_without_path(folder: Path) -> Path:
    (folder / "runs.tsv").write_text("file\na.nii.gz\n")
    return folder / "runs.tsv"


BAD_INPUT = {
    "no such file or folder": lambda folder: folder / "absent.nii.gz",
    "named .gz but not gzip data": text_file,
    "gzip stream is truncated": truncated,
    "a 3D image": flat,
    "brain's voxels are NaN": all_nan,
    "TR 0 s": tr_of(0.0),
    "TR 2000 s": tr_of(2000.0),
    "affine is singular": singular,
    "affine has NaN or Inf": nan_affine,
    "--assume-mni": native_space,
    "make 9 frames": lambda folder: save(head(volumes=8), folder),
    "no NIfTI run found": lambda folder: folder,
    "no column path": table_without_path,
}


@pytest.mark.parametrize("reason", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    path = BAD_INPUT[reason](source)
    before = sorted(source.iterdir())
    assert main(["build", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert reason in said.err
    assert str(path) in said.err
    assert said.err.count("\n") == 1
    assert said.err.startswith("fmri-shards build: ")
    assert sorted(source.iterdir()) == before
    assert sorted(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (["--target-tr", "fast"], "--target-tr is 'fast'"),
        (["--target-tr", "0"], "target TR is 0 s"),
        (["--splits", "1"], "--splits is '1'"),
        (["--splits", "nan,0,1"], "--splits is 'nan,0,1'"),
        (["--shard-mb", "0"], "--shard-mb is 0"),
        (["--min-frames", "0"], "min frames is 0"),
        (["--dataset", "a/b"], "dataset name 'a/b'"),
        (["--tr", "-1"], "TR -1 s"),
        (["--mask", "absent.nii.gz"], "absent.nii.gz: no such file"),
    ],
)
def test_bad_option_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], reason: str
) -> None:
    path = save(head(), tmp_path / "in")
    assert main(["build", str(path), "--out", str(tmp_path / "out"), *option]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect"])
def test_corpus_that_does_not_exist_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, str(tmp_path / "absent")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"fmri-shards {command}: {tmp_path / 'absent'}: no such corpus")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_some_bad_runs_are_exit_code_1_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    save(head(), source)
    bad = save(with_header(head(), 0.0), source, "sub-02_task-rest_bold.nii.gz")
    assert main(["build", str(source), "--out", str(tmp_path / "out"), "--dataset", "d"]) == 1
    said = capsys.readouterr()
    assert f"failed: {bad}: TR 0 s" in said.err
    assert "1 runs of 1 subjects" in said.out
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert f"failed: {bad}: TR 0 s" in capsys.readouterr().out
    # Nothing changed: the second start makes nothing, and says again what failed.
    assert main(["build", str(source), "--out", str(tmp_path / "out"), "--dataset", "d"]) == 1
    said = capsys.readouterr()
    assert "(0 made now)" in said.out
    assert f"failed: {bad}: TR 0 s" in said.err


def test_ctrl_c_is_one_line_and_exit_code_130(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_command, "build_corpus", interrupt)
    assert main(["build", str(save(head(), tmp_path)), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "fmri-shards build: interrupted; start it again to go on\n"


def test_inspect_says_what_the_files_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    for number in (1, 2):
        save(head(volumes=20, tr=2.0, seed=number), source, f"sub-{number}_task-rest_bold.nii.gz")
    out = tmp_path / "out"
    assert main(["build", str(source), "--out", str(out), "--dataset", "study", "--licence", "CC0"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out
    frames = int(19 * 2.0 / 0.8) + 1
    assert f"{2 * frames} (0.02 hours at TR 0.8 s)" in said
    shape = " x ".join(map(str, head().shape[:3]))
    assert f"{shape} voxels of 8 x 8 x 8 mm, RAS, 20 volumes, TR 2 s, resampled" in said
    assert "CC0" in said
    corpus = open_corpus(out)
    assert f"{corpus.num_voxels:,} in the mask" in said
    for name in ("train", "val", "test"):
        assert sum(line.startswith(name) for line in said.splitlines()) == 1
        if name not in corpus.index["split"]:
            assert "a person is never divided" in said


def test_reader_that_leaves_early_causes_no_traceback(tmp_path: Path) -> None:
    save(head(), tmp_path / "in")
    program = "import sys; from sharding.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "build", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=300) == 141
    assert (tmp_path / "out" / "corpus.json").is_file()


def test_help_of_every_command_has_an_example_and_needs_no_libraries() -> None:
    for command, expected in (("build", "fmri-shards build derivatives"), ("phantom", "fmri-shards phantom cohort")):
        program = (
            f"import sys; from sharding.cli import main\ntry: main(['{command}', '--help'])\n"
            "except SystemExit: print(sorted({'torch', 'nilearn', 'webdataset'} & set(sys.modules)))"
        )
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert expected in said
        assert said.endswith("[]\n")


def test_dry_run_says_what_would_be_made_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = bids_tree(tmp_path / "study"), tmp_path / "out"
    for run in (1, 2):
        fmriprep_run(source, f"sub-01_task-rest_run-{run}")
    save(
        with_header(head(volumes=3), 1.0), source / "sub-01/func", f"sub-01_task-short_{MNI6}_desc-preproc_bold.nii.gz"
    )
    assert main(["build", str(source), "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{source}: read as BIDS derivatives"
    assert said[1].startswith("dataset study: 3 runs of 1 subject in 1 session; tasks rest 2, short 1; 2 with own mask")
    assert said[2].startswith("left out: 2 (space-MNI152NLin6Asym res-2 of the same run is taken), such as ")
    assert said[3].startswith("would make 1 shards, 0.0")
    assert said[3].endswith("2 runs of 1 people, 54 frames")
    assert "TR: 1 s 2" in said
    assert said[-1].startswith("CANNOT BE USED: 1 (too short: 3 volumes of 1 s make 3 frames of 0.8 s")
    assert not out.exists()


def test_dry_run_points_out_headers_that_contradict_their_sidecars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = bids_tree(tmp_path / "study")
    folder = fmriprep_run(source, "sub-01_task-rest", (MNI6,))
    next(folder.glob("*_bold.json")).write_text('{"RepetitionTime": 2.0}')
    assert main(["build", str(source), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "TR: 2 s 1" in said
    assert (
        "LOOK: 1 headers say another TR than their sidecar, table or --tr, which is used, such as 1 s, not 2 s" in said
    )


def test_every_option_of_preprocessing_reaches_the_corpus(tmp_path: Path) -> None:
    source, out = bids_tree(tmp_path / "study"), tmp_path / "out"
    folder = fmriprep_run(source, "sub-01_task-rest", (MNI6,))
    save(head(voxel_mm=10.0, volumes=40), folder, f"sub-01_task-rest_{MNI6}_desc-preproc_bold.nii.gz")
    put(folder, "sub-01_task-rest_desc-confounds_timeseries.tsv", confounds(40))
    options = {
        "--target-tr": "1.5", "--min-frames": "5", "--negatives": "keep", "--interpolation": "continuous",
        "--time-interpolation": "linear", "--geometry": "neurostorm_legacy", "--confounds": "global_signal",
        "--high-pass": "0.01", "--low-pass": "0.2", "--scrub": "0.5",
    }  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    assert main(["build", str(source), "--out", str(out), "--workers", "0", *words]) == 0
    stored = open_corpus(out).meta["settings"]["preprocessing"]
    assert PreprocessingSettings.from_json(stored) == PreprocessingSettings(
        1.5, 5, "keep", 12.0, "neurostorm_legacy", "continuous", "linear", "global_signal", 0.01, 0.2, 0.5
    )
    assert all(stored[name] != value for name, value in PreprocessingSettings().to_json().items() if name != "range_sd")
