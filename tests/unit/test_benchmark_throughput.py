"""benchmarks/throughput.py measures real runs, and a point that fails does not stop the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/throughput.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The files of a smoke run of two points, of which the second cannot work: 3 clips do not make a batch of 2."""
    folder = tmp_path_factory.mktemp("throughput")
    grid = ["--smoke", "--batch", "1", "3", "--global-batch", "2", "--out", folder / "out", "--work", folder / "work"]
    places = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {key: value for key, value in os.environ.items() if key not in places} | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, SCRIPT, *grid], env=env, check=True, timeout=240)
    return folder


def record(out):
    return json.loads(next((out / "out").glob("throughput_*.json")).read_text())


def test_figures_are_those_of_the_run(out):
    row = record(out)["rows"][0]
    steps = [json.loads(line) for line in (out / "work/point_000/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    measured = sorted(step["step_s"] for step in steps[1:])
    assert row["step_s"] == {"median": sum(measured) / 2, "low": measured[0], "high": measured[1]}
    frames = 2 * 2  # clips of the global batch, frames of a clip
    assert row["frames_per_s_per_rank"]["high"] == pytest.approx(frames / measured[0])
    assert row["peak_memory_gb"] == max(step["peak_memory_gb"] for step in steps)
    assert (row["steps"], row["skipped_steps"], row["failed"]) == (2, 0, "")


def test_unknown_peak_gives_no_mfu(out):
    if record(out)["gpu"]:
        pytest.skip("a GPU whose peak may be known")
    assert record(out)["rows"][0]["mfu"] is None


def test_failed_point_tells_why(out):
    row = record(out)["rows"][1]
    assert "optim.global_batch" in row["failed"]
    assert row["batch"] == 3
    assert "step_s" not in row


def test_table_and_plot_are_written(out):
    table = next((out / "out").glob("throughput_*.md")).read_text()
    assert "SMOKE TEST" in table
    assert sum(line.startswith("| tiny ") for line in table.splitlines()) == 2
    assert record(out)["rows"][1]["failed"] in table
    assert "</svg>" in next((out / "out").glob("throughput_*.svg")).read_text()


def test_corpus_wanted_for_the_real_loader():
    found = subprocess.run([sys.executable, SCRIPT, "--loader", "real"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "--corpus" in found.stderr
