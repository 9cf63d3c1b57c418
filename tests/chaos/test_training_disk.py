"""A disk that is too small, fills up inside a checkpoint or cannot be written: all ranks end with one reason.

Nothing half written stays, and with room again the run ends as if nothing had happened, to the bit.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fmri_scale.checkpoint import consolidated_state, layout
from fmri_scale.errors import ConfigError
from fmri_scale.training import folder as run_folder
from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import TRAINEE, run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = [pytest.mark.root, pytest.mark.dist]

STEPS = 3


def mounted(place: Path, options: str) -> Path:
    """Mount a file system in memory at a new folder, where that is allowed."""
    place.mkdir(parents=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]).returncode:
        pytest.skip("needs to be allowed to mount a tmpfs")
    return place


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Path]:
    """Runs on two ranks that meet what their names say, `fills` and `small` again with room, and `unbroken`."""
    folder = tmp_path_factory.mktemp("disk")
    corpus = write_tiny_corpus(folder / "corpus")

    def job(name: str, **faults: object) -> dict:
        saved = {"optim__steps": STEPS, "checkpoint__every_steps": 1, "checkpoint__keep_last": 1}
        return {"arguments": arguments(folder / name, corpus, **saved), "faults": faults}

    disks = []
    try:
        for name, options in (("small", "size=200k"), ("fills", "size=8m"), ("readonly/checkpoints", "ro,size=8m")):
            disks.append(mounted(folder / name, options))
        jobs = [job("unbroken"), job("small"), job("fills", fill_disk=str(folder / "fills")), job("readonly")]
        for jobs_now in (jobs, [job("small"), job("fills")]):
            (folder / "jobs.json").write_text(json.dumps(jobs_now))
            ended = run_ranks([str(folder / "jobs.json")], 2, folder, TRAINEE)
            assert [process.code for process in ended] == [0, 0]
            if jobs_now is jobs:
                keep_what_became(folder)
                subprocess.run(["mount", "-o", "remount,size=8m", folder / "small"], check=True)
        yield folder
    finally:
        for disk in disks:
            subprocess.run(["umount", disk], check=True)


def keep_what_became(folder: Path) -> None:
    """Write down how the runs ended that are started again."""
    for name in ("small", "fills"):
        run = folder / name
        found = {
            "records": [json.loads((run / f"record_{rank}.json").read_text()) for rank in (0, 1)],
            "checkpoints": [c.step for c in layout.committed(run)],
            "leftovers": len(layout.leftovers(run)),
            "status": run_folder.read_status(run),
        }
        (folder / f"{name}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("name", "message"), [("small", "a checkpoint of step 1 needs "), ("fills", "No space left on device")]
)
def test_full_disk_is_told_by_all_ranks_and_leaves_nothing_half_written(made, name, message):
    found = json.loads((made / f"{name}.json").read_text())
    for record in found["records"]:
        assert record["kind"] == "CheckpointError"
        assert message in record["error"]
    assert found["checkpoints"] == []
    assert found["leftovers"] == 0
    if name == "small":  # a full disk has no room for the status either
        assert (found["status"]["state"], found["status"]["exit_code"]) == ("failed", 2)


@pytest.mark.parametrize("name", ["small", "fills"])
def test_with_room_again_the_run_ends_as_the_unbroken_one(made, name):
    assert [row["loss"] for row in read_metrics(made / name)] == [
        row["loss"] for row in read_metrics(made / "unbroken")
    ]
    found, wanted = consolidated_state(made / name), consolidated_state(made / "unbroken")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_folder_of_checkpoints_that_cannot_be_written_ends_all_ranks(made):
    for rank in (0, 1):
        record = json.loads((made / "readonly" / f"record_{rank}.json").read_text())
        assert record["kind"] == "CheckpointError"
        assert "step_00000001: could not be written: [Errno 30] Read-only file system" in record["error"]


def test_run_folder_that_cannot_be_written_is_named(tmp_path):
    disk = mounted(tmp_path / "disk", "ro,size=1m")
    try:
        with pytest.raises(ConfigError, match=r"disk/run: cannot be written: Read-only file system"):
            run_folder.take(disk / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
