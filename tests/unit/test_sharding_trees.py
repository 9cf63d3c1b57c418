"""Corpora of trees as pipelines leave them: the right runs, under the right names, with what lies beside them used."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sharding.cli import main
from sharding.corpus import open_corpus
from sharding.discover import find_runs
from tests.helpers.trees import MNI6, MNI2009, bids_tree, fmriprep_run, hcp_run, put, ukb_run

ENTITIES = ("subject", "session", "task", "run", "variant")


def build(source: Path, out: Path, *options: str) -> list[dict]:
    """Build a corpus; return the rows of its runs that are in it."""
    words = ["--out", str(out), "--workers", "0", "--shard-mb", "200", *options]
    assert main(["build", str(source), *words]) == 0
    corpus = open_corpus(out)
    runs = [run for run in pq.read_table(out / "runs.parquet").to_pylist() if run["status"] == "ok"]
    assert corpus.meta["totals"]["runs"] == len(runs)
    assert corpus.meta["totals"]["frames"] == sum(run["frames"] for run in runs) == corpus.index["n_frames"].sum()
    return runs


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    root = bids_tree(tmp_path_factory.mktemp("bids") / "study")
    fmriprep_run(root, "sub-01_ses-a_task-rest_dir-AP_run-1")
    fmriprep_run(root, "sub-01_ses-b_task-rest_dir-PA_run-1", (MNI2009, "space-T1w"))
    folder = fmriprep_run(root, "sub-02_task-nback_acq-mb_part-mag", (MNI6,))
    fmriprep_run(root, "sub-02_task-nback_acq-mb_part-phase", (MNI6,))
    for sidecar in folder.glob("*part-mag*_bold.json"):
        sidecar.unlink()
    put(root, "task-nback_bold.json", {"RepetitionTime": 1.2})
    return root, build(root, root.parent / "corpus")


def test_bids_tree_builds_with_its_entities(bids: tuple[Path, list[dict]]) -> None:
    found = {tuple(run[name] for name in ENTITIES) for run in bids[1]}
    assert found == {
        ("01", "a", "rest", "1", "dir-AP"), ("01", "b", "rest", "1", "dir-PA"), ("02", "", "nback", "", "acq-mb"),
    }  # fmt: skip
    index = open_corpus(bids[0].parent / "corpus").index
    assert {tuple(index[name][i] for name in ENTITIES[:4]) for i in range(len(index["key"]))} == {f[:4] for f in found}
    assert set(index["dataset"]) == {"study"}


def test_what_lies_beside_a_run_is_used(bids: tuple[Path, list[dict]]) -> None:
    runs = {run["task"] + run["session"]: run for run in bids[1]}
    assert {name: (run["source_tr"], run["tr_from"]) for name, run in runs.items()} == {
        "resta": (1.0, "sidecar"), "restb": (1.0, "sidecar"), "nback": (1.2, "sidecar"),
    }  # fmt: skip
    for run in runs.values():
        assert run["header_tr"] == 1.0
        assert run["fd_from"] == "confounds"
        assert run["mean_fd"] == pytest.approx((20 * 0.1 + 2.0) / 21)
        assert 0.7 < run["mask_dice"] < 1
        assert run["space"] == "file name"
        assert run["tsnr_median"] > 10
        assert run["int8_corr_p5"] > 0.99


def test_features_and_builds_see_the_same_runs(bids: tuple[Path, list[dict]]) -> None:
    assert {str(run.path) for run in find_runs([bids[0]])[0]} == {run["source"] for run in bids[1]}


def test_confounds_change_the_corpus_and_stand_in_it(bids: tuple[Path, list[dict]], tmp_path: Path) -> None:
    runs = build(bids[0], tmp_path / "out", "--confounds", "global_signal", "--scrub", "0.5")
    assert {run["scrubbed_frames"] for run in runs} == {1}
    plain, cleaned = (open_corpus(path) for path in (bids[0].parent / "corpus", tmp_path / "out"))
    assert list(plain.index["key"]) == list(cleaned.index["key"])
    assert not set(plain.index["bold_xxh3"]) & set(cleaned.index["bold_xxh3"])
    assert cleaned.meta["settings"]["preprocessing"]["confounds"] == "global_signal"


def test_hcp_tree_builds_with_its_entities(tmp_path: Path) -> None:
    root = tmp_path / "hcp"
    hcp_run(root, "100206", "rfMRI_REST1_LR", "_hp2000_clean")
    hcp_run(root, "100206", "tfMRI_MOTOR_RL")
    hcp_run(root, "HCA6002236_V1_MR", "rfMRI_REST2_PA")
    runs = build(root, tmp_path / "out")
    assert {tuple(run[name] for name in ENTITIES) for run in runs} == {
        ("100206", "", "REST", "1", "dir-LR"),
        ("100206", "", "MOTOR", "", "dir-RL"),
        ("HCA6002236", "V1", "REST", "2", "dir-PA"),
    }
    for run in runs:
        assert (run["fd_from"], run["tr_from"]) == ("motion", "header")
        assert run["mean_fd"] == pytest.approx((20 * 0.1 + 0.3) / 22)
        assert run["mask_dice"] > 0.7


def test_uk_biobank_tree_builds_with_its_entities(tmp_path: Path) -> None:
    root = tmp_path / "ukb"
    ukb_run(root, "1000011_20227_2_0")
    ukb_run(root, "1000011_20227_3_0")
    ukb_run(root, "1000022_20227_2_0", standard=False)
    runs = build(root, tmp_path / "out", "--target-tr", "native")
    assert {tuple(run[name] for name in ENTITIES) for run in runs} == {
        ("1000011", "2", "rest", "", ""), ("1000011", "3", "rest", "", ""),
    }  # fmt: skip
    assert {(run["tr"], run["tr_from"], run["fd_from"]) for run in runs} == {(0.735, "sidecar", "motion")}
    skipped = [run for run in pq.read_table(tmp_path / "out/runs.parquet").to_pylist() if run["status"] == "skipped"]
    assert any("1000022" in run["source"] and "applywarp" in run["reason"] for run in skipped)
