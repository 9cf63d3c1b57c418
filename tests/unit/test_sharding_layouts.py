"""Trees as pipelines leave them: the counts and entities are right, and whatever is left out has its reason."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding.discover import Discovery, FindOptions, discover
from sharding.discover import names as library
from sharding.discover.layout import recognise
from sharding.discover.pattern import compiled
from sharding.discover.summary import describe_found
from sharding.errors import InputError
from sharding.format import is_key
from sharding.keys import run_label, sample_key
from tests.helpers.trees import MNI6, MNI2009, bids_tree, fmriprep_run, hcp_run, put, ukb_run

NATIVE = ""
T1W = "space-T1w"


def labels(found: Discovery) -> list[str]:
    return sorted(run_label(run).split("__")[1] for run in found.runs)


def reasons(found: Discovery) -> dict[str, str]:
    return {item.path.name: item.reason for item in found.left_out}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return bids_tree(tmp_path / "study")


def test_runs_of_a_bids_tree_have_their_entities_mask_confounds_and_tr(tree: Path) -> None:
    fmriprep_run(tree, "sub-01_ses-a_task-rest_dir-AP_run-1", empty=True)
    fmriprep_run(tree, "sub-02_task-nback_acq-fast", empty=True)
    put(tree, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz", b"")
    put(tree, "sub-01/figures/sub-01_ses-a_task-rest_desc-carpetplot_bold.svg", b"")
    found = discover([tree])
    one, two = sorted(found.runs, key=run_label)
    assert (one.dataset, one.subject, one.session, one.task, one.run, one.variant) == (
        "study", "01", "a", "rest", "1", "dir-AP",
    )  # fmt: skip
    assert (two.subject, two.session, two.task, two.run, two.variant) == ("02", "", "nback", "", "acq-fast")
    for run in (one, two):
        assert MNI6 in run.path.name
        assert run.mask == run.path.with_name(run.path.name.replace("desc-preproc_bold", "desc-brain_mask"))
        assert run.confounds is not None
        assert run.confounds.is_file()
        assert (run.tr, run.tr_from) == (1.0, "sidecar")
    assert len(found.left_out) == 2
    assert set(reasons(found).values()) == {"space-MNI152NLin6Asym res-2 of the same run is taken"}
    assert found.notes == [f"{tree}: read as BIDS derivatives"]


@pytest.mark.parametrize(
    ("spaces", "taken"),
    [
        ((MNI2009, T1W, NATIVE), MNI2009),
        ((MNI2009, MNI6), MNI6),
        (("space-MNI152NLin6Asym_res-1", "space-MNI152NLin6Asym", MNI6), MNI6),
        (("space-MNI152NLin6Asym_res-1", "space-MNI152NLin6Asym"), "space-MNI152NLin6Asym_desc"),
        (("space-MNI152Lin", "space-MNI152NLin2009aAsym"), "space-MNI152Lin_"),
    ],
)
def test_one_space_and_resolution_is_taken_by_the_stated_rule(tree: Path, spaces: tuple, taken: str) -> None:
    fmriprep_run(tree, "sub-01_task-rest", spaces, empty=True)
    found = discover([tree])
    assert [taken in run.path.name for run in found.runs] == [True]
    assert len(found.left_out) == len(spaces) - 1


def test_a_space_told_is_the_only_one_taken(tree: Path) -> None:
    fmriprep_run(tree, "sub-01_task-rest", (MNI6, MNI2009, T1W), empty=True)
    for space in ("MNI152NLin2009cAsym", "T1w"):
        found = discover([tree], FindOptions(space=space))
        assert [f"space-{space}" in run.path.name for run in found.runs] == [True]
        assert len(found.left_out) == 2


@pytest.mark.parametrize(
    ("names", "expected", "left"),
    [
        (["sub-1_task-x_dir-AP", "sub-1_task-x_dir-PA"], ["sub-1_task-x_dir-AP", "sub-1_task-x_dir-PA"], 0),
        (["sub-1_task-x_acq-a_rec-b_run-1"], ["sub-1_task-x_acq-a_rec-b_run-1"], 0),
        (["sub-1_task-x_part-mag", "sub-1_task-x_part-phase"], ["sub-1_task-x"], 1),
        (["sub-1_task-x", "sub-1_task-x_echo-1", "sub-1_task-x_echo-2"], ["sub-1_task-x"], 2),
        (["sub-1_task-x_echo-1", "sub-1_task-x_echo-2", "sub-1_task-y"], ["sub-1_task-y"], 2),
        (["sub-1_task-x_echo-2"], ["sub-1_task-x_echo-2"], 0),
        (["sub-1_task-x_ce-gad_proc-q"], ["sub-1_task-x_ce-gad_proc-q"], 0),
        (["sub-1_ses-1_task-x", "sub-1_ses-2_task-x"], ["sub-1_ses-1_task-x", "sub-1_ses-2_task-x"], 0),
    ],
)
def test_edge_cases_of_bids_names(tree: Path, names: list[str], expected: list[str], left: int) -> None:
    for name in names:
        fmriprep_run(tree, name, (MNI6,), empty=True)
    found = discover([tree])
    assert labels(found) == expected
    assert len(found.left_out) == left


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-01/func/sub-01_task-x_run-1_run-2_space-MNI152Lin_desc-preproc_bold.nii.gz", "the entity run- twice"),
        ("sub-01/func/sub-02_task-x_space-MNI152Lin_desc-preproc_bold.nii.gz", "says sub-02, its folder sub-01"),
        ("sub-01/ses-1/func/sub-01_task-x_space-MNI152Lin_desc-preproc_bold.nii.gz", "says ses-?, its folder ses-1"),
        ("sub-01/func/sub-01_task-x_space-fsLR_desc-preproc_bold.nii.gz", "space-fsLR: not MNI152"),
        ("sub-01/func/sub-01_task-x_bold.nii.gz", "no desc-preproc"),
        ("sub-01/func/sub-01_task-x_space-MNI152Lin_desc-smooth_bold.nii.gz", "desc-smooth"),
        ("sub-01/func/sub-01_task-x_desc-preproc_bold.nii.gz", "the scanner's own space"),
    ],
)
def test_what_is_no_run_of_a_tree_is_left_out_with_the_reason(tree: Path, name: str, reason: str) -> None:
    fmriprep_run(tree, "sub-09_task-rest", (MNI6,), empty=True)
    put(tree, name, b"")
    found = discover([tree])
    assert labels(found) == ["sub-09_task-rest"]
    assert [(item.path, reason in item.reason) for item in found.left_out] == [(tree / name, True)]


def test_two_files_that_are_the_same_run_are_refused(tree: Path) -> None:
    fmriprep_run(tree, "sub-01_task-rest_run-1", (MNI6,), empty=True)
    fmriprep_run(tree, "sub-01_task-rest_run-01", (MNI6,), empty=True)  # the same index, as BIDS reads it
    with pytest.raises(InputError, match=r"run-01.*run-1.* are the same run"):
        discover([tree])


def test_repetition_time_is_inherited_from_the_nearest_sidecar(tree: Path) -> None:
    for name in ("sub-01_task-rest", "sub-01_task-nback", "sub-02_task-rest", "sub-03_ses-1_task-rest"):
        folder = fmriprep_run(tree, name, (MNI6,), empty=True)
        for sidecar in folder.glob("*_bold.json"):
            sidecar.write_text("{}")
    put(tree, "task-rest_bold.json", {"RepetitionTime": 2.5})
    put(tree, "sub-02/sub-02_bold.json", {"RepetitionTime": 0.7})
    put(tree, "sub-02/sub-02_task-rest_bold.json", {"RepetitionTime": 0.8})
    put(tree, "sub-03/ses-1/sub-03_ses-1_bold.json", {"RepetitionTime": 0.9})
    found = {run_label(run).split("__")[1]: run.tr for run in discover([tree]).runs}
    assert found == {
        "sub-01_task-rest": 2.5, "sub-01_task-nback": None, "sub-02_task-rest": 0.8, "sub-03_ses-1_task-rest": 0.9,
    }  # fmt: skip
    assert {run.tr for run in discover([tree], FindOptions(tr=3.0)).runs} == {3.0}


@pytest.mark.parametrize("content", ["{", "[]", '{"RepetitionTime": "two"}'])
def test_broken_sidecar_fails_its_run_alone(tree: Path, content: str) -> None:
    fmriprep_run(tree, "sub-01_task-rest", (MNI6,), empty=True)
    folder = fmriprep_run(tree, "sub-02_task-rest", (MNI6,), empty=True)
    broken = next(folder.glob("*_bold.json"))
    broken.write_text(content)
    found = discover([tree])
    assert labels(found) == ["sub-01_task-rest"]
    assert found.left_out[0].failed
    assert str(broken) in found.left_out[0].reason
    assert "give --tr SECONDS" in found.left_out[0].reason or "expected seconds" in found.left_out[0].reason
    told = discover([tree], FindOptions(tr=2.0))  # as the message says
    assert [(run.tr, run.tr_from) for run in told.runs] == [(2.0, "")] * 2
    assert told.left_out == []


def test_part_of_a_tree_is_read_with_the_facts_of_the_whole(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fmriprep_run(tree, "sub-01_ses-1_task-rest", (MNI6,), empty=True)
    fmriprep_run(tree, "sub-02_task-rest", (MNI6,), empty=True)
    for sidecar in folder.glob("*_bold.json"):
        sidecar.unlink()
    put(tree, "task-rest_bold.json", {"RepetitionTime": 2.5})
    monkeypatch.chdir(tree / "sub-01")
    for part in (tree / "sub-01", folder.parent, folder, Path("."), Path("ses-1/func"), Path("../sub-01/ses-1")):
        found = discover([part])
        assert [(run_label(run), run.tr) for run in found.runs] == [("study__sub-01_ses-1_task-rest", 2.5)]


def test_no_folder_is_listed_twice(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest", "sub-02_task-rest"):
        fmriprep_run(tree, name, (MNI6, MNI2009), empty=True)
    listed: Counter[Path] = Counter()

    def counting(plain: Callable) -> Callable:
        def counted(path: Path) -> object:
            listed[Path(path)] += 1
            return plain(path)

        return counted

    for function in ("scandir", "listdir"):
        monkeypatch.setattr(os, function, counting(getattr(os, function)))
    assert len(discover([tree], FindOptions(layout="bids")).runs) == 3
    assert len(listed) == 8
    assert set(listed.values()) == {1}


def test_tree_below_a_folder_named_like_a_subject_is_its_own(tmp_path: Path) -> None:
    tree = bids_tree(tmp_path / "sub-project" / "fmriprep")
    fmriprep_run(tree, "sub-01_task-rest", (MNI6,), empty=True)
    assert [run_label(run) for run in discover([tree]).runs] == ["fmriprep__sub-01_task-rest"]


def test_links_are_followed_and_loops_end(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "annex"
    folder = fmriprep_run(elsewhere, "sub-01_task-rest", (MNI6,), empty=True)
    (tree / "sub-01").symlink_to(elsewhere / "sub-01")
    (folder / "sub-loop").symlink_to(tree)
    found = discover([tree])
    assert labels(found) == ["sub-01_task-rest"]
    assert found.runs[0].path.is_relative_to(tree)


@pytest.mark.parametrize("layout", ["bids", "files", "pattern"])
def test_unreadable_folder_is_named_and_counted_and_the_rest_is_found(
    tree: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    for name in ("sub-01_task-rest", "sub-02_task-rest"):
        fmriprep_run(tree, name, (MNI6,), empty=True)
    closed = tree / "sub-01" / "func"
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the permission itself would not stop a test that runs as root
    options = (
        FindOptions(pattern="sub-{subject}/func/*bold.nii.gz") if layout == "pattern" else FindOptions(layout=layout)
    )
    found = discover([tree], options)
    assert {run.subject for run in found.runs} == {"02"}
    failed = [item for item in found.left_out if item.failed]
    assert [(item.path, item.reason) for item in failed] == [(closed, "folder cannot be read (Permission denied)")]
    assert f"CANNOT BE USED: 1 (folder cannot be read (Permission denied)), such as {closed}" in describe_found(found)
    with pytest.raises(InputError, match=r"folder cannot be read \(Permission denied\)"):
        discover([closed], FindOptions(layout="files"))


def test_bids_library_that_is_missing_is_named_with_the_remedy(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fmriprep_run(tree, "sub-01_task-rest", (MNI6,), empty=True)
    monkeypatch.setitem(sys.modules, "bids2table", None)
    library._library.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'fmri-scale\[bids\]'"):
        discover([tree])
    assert len(discover([tree], FindOptions(layout="files")).runs) == 1


def test_runs_of_an_hcp_tree(tmp_path: Path) -> None:
    root = tmp_path / "hcp"
    hcp_run(root, "100206", "rfMRI_REST1_LR", "_hp2000_clean", empty=True)
    hcp_run(root, "100206", "tfMRI_WM_RL", empty=True)
    hcp_run(root, "100206", "rfMRI_REST3_7T_PA", empty=True)
    hcp_run(root, "HCA6002236_V1_MR", "rfMRI_REST1_AP", empty=True)
    put(root, "100206/MNINonLinear/Results/rfMRI_REST/rfMRI_REST_hp0_clean.nii.gz", b"")
    put(root, "100206/T1w/Results/rfMRI_REST1_LR/rfMRI_REST1_LR.nii.gz", b"")
    found = discover([root])
    assert found.notes == [f"{root}: read as HCP results"]
    assert labels(found) == [
        "sub-100206_task-REST_acq-7T_dir-PA_run-3",
        "sub-100206_task-REST_dir-LR_run-1",
        "sub-100206_task-WM_dir-RL",
        "sub-HCA6002236_ses-V1_task-REST_dir-AP_run-1",
    ]
    for run in found.runs:
        assert run.mask == run.path.parent / "brainmask_fs.2.nii.gz"
        assert run.motion == run.path.parent / "Movement_RelativeRMS.txt"
    assert reasons(found) == {
        "rfMRI_REST1_LR_hp2000_clean.nii.gz": "rfMRI_REST1_LR.nii.gz is taken",
        "rfMRI_REST.nii.gz": "several runs in one; there is rfMRI_REST_hp0_clean.nii.gz",
    }
    clean = discover([root], FindOptions(desc="hp2000_clean"))
    assert [run.path.name for run in clean.runs] == ["rfMRI_REST1_LR_hp2000_clean.nii.gz"]
    assert labels(discover([root / "100206" / "MNINonLinear"])) == labels(found)[:3]


def test_hcp_folder_of_no_subject_is_left_out_without_its_name(tmp_path: Path) -> None:
    hcp_run(tmp_path / "hcp", "100206", "rfMRI_REST1_LR", empty=True)
    odd = hcp_run(tmp_path / "hcp", "SmithJane", "rfMRI_REST1_LR", empty=True) / "rfMRI_REST1_LR.nii.gz"
    (item,) = discover([tmp_path / "hcp"]).left_out
    assert (item.path, item.failed) == (odd, True)
    assert item.reason == f"{odd}: the folder above MNINonLinear is not named by a subject's number"


def test_entity_whose_name_is_not_ascii_makes_a_key(tree: Path) -> None:
    fmriprep_run(tree, "sub-02_task-rest_größe-x", (MNI6,), empty=True)
    (run,) = (run for run in discover([tree]).runs if run.subject == "02")
    assert run.variant == "gr-e-x"
    assert is_key(sample_key(run, 0))


def test_runs_of_a_uk_biobank_tree(tmp_path: Path) -> None:
    root = tmp_path / "ukb"
    ukb_run(root, "1000011_20227_2_0", empty=True)
    ukb_run(root, "1000011_20227_3_0", empty=True)
    ukb_run(root, "1000022_20227_2_0", standard=False, empty=True)
    warped = ukb_run(root, "1000033_20227_2_0", standard=False, empty=True)
    put(warped, "filtered_func_data_clean_MNI152.nii.gz", b"")
    found = discover([root])
    assert found.notes == [f"{root}: read as UK Biobank bulk data"]
    assert labels(found) == [
        "sub-1000011_ses-2_task-rest", "sub-1000011_ses-3_task-rest", "sub-1000033_ses-2_task-rest",
    ]  # fmt: skip
    assert {(run.tr, run.tr_from) for run in found.runs} == {(0.735, "sidecar")}
    assert sum(run.mask is not None for run in found.runs) == 2
    assert all(run.motion is not None for run in found.runs)
    native = [item for item in found.left_out if "1000022" in str(item.path)]
    assert len(native) == 1
    assert "applywarp" in native[0].reason


def test_pattern_names_runs(tmp_path: Path) -> None:
    root = tmp_path / "lab"
    put(root, "sub-7/x/y/night1.nii.gz", b"")
    put(root, "sub-8/night1.nii.gz", b"")
    put(root, "other/night1.nii.gz", b"")
    found = discover([root], FindOptions(pattern="sub-{subject}/.../{run}.nii.gz"))
    assert [(run.subject, run.run) for run in found.runs] == [("7", "night1"), ("8", "night1")]
    assert reasons(found) == {"night1.nii.gz": "does not fit --pattern sub-{subject}/.../{run}.nii.gz"}
    assert compiled("{subject}/{subject}_{task}*.nii").fullmatch("a/a_rest_x.nii")
    assert not compiled("{subject}/{subject}_{task}.nii").fullmatch("a/b_rest.nii")
    for pattern, reason in (("{run}.nii", "has no {subject}"), ("{subject}_{age}.nii", "{age} is none of")):
        with pytest.raises(InputError, match=reason):
            discover([root], FindOptions(pattern=pattern))


def test_layout_is_recognised_only_by_its_marks(tmp_path: Path) -> None:
    fmriprep_run(bids_tree(tmp_path / "a"), "sub-01_task-rest", empty=True)
    fmriprep_run(tmp_path / "b", "sub-01_task-rest", empty=True)
    hcp_run(tmp_path / "c", "100206", "rfMRI_REST1_LR", empty=True)
    ukb_run(tmp_path / "d", "1000011_20227_2_0", empty=True)
    assert [recognise(tmp_path / name) for name in "abcd"] == ["bids", "files", "hcp", "ukb"]
    with pytest.raises(InputError, match=rf"{tmp_path}: holds a BIDS tree, {tmp_path}/a; give the trees meant"):
        discover([tmp_path])
    (tmp_path / "a" / "dataset_description.json").unlink()
    with pytest.raises(InputError, match=rf"has the marks of hcp \({tmp_path}/c/.*\) and ukb \({tmp_path}/d/.*\)"):
        discover([tmp_path])
    assert len(discover([tmp_path / "c", tmp_path / "d"]).runs) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (FindOptions(space="T1w"), "--space goes with folders read as bids"),
        (FindOptions(desc="smooth"), "--desc goes with folders read as bids, hcp, ukb"),
        (FindOptions(pattern="{subject}.nii", layout="hcp"), "--pattern goes with plain files, not with --layout hcp"),
    ],
)
def test_options_that_a_layout_does_not_heed_are_refused(tmp_path: Path, options: FindOptions, reason: str) -> None:
    folder = put(tmp_path, "plain/sub-1_bold.nii.gz", b"").parent
    for item in (folder, folder / "sub-1_bold.nii.gz"):
        with pytest.raises(InputError, match=reason):
            discover([item], options)


def test_raw_bids_tree_leads_to_its_derivatives(tree: Path) -> None:
    put(tree, "sub-01/func/sub-01_task-rest_bold.nii.gz", b"")
    (tree / "derivatives").mkdir()
    with pytest.raises(InputError, match=r"1 left out, the first: .*no desc-preproc.*; there is .*/derivatives: give"):
        discover([tree])


def test_summary_counts_what_was_found_and_left_out(tree: Path) -> None:
    for subject in ("01", "02"):
        for run in (1, 2):
            fmriprep_run(tree, f"sub-{subject}_task-rest_run-{run}", (MNI6, MNI2009), empty=True)
    said = describe_found(discover([tree]))
    assert said.splitlines() == [
        f"{tree}: read as BIDS derivatives",
        "dataset study: 4 runs of 2 subjects in 2 sessions; tasks rest 4; 4 with own mask; 4 with confounds",
        "left out: 4 (space-MNI152NLin6Asym res-2 of the same run is taken), such as "
        f"{tree}/sub-01/func/sub-01_task-rest_run-1_{MNI2009}_desc-preproc_bold.nii.gz",
    ]
