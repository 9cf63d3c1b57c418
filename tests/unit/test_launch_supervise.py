"""The supervisor of a launch, against launchers and ranks that behave as badly as real ones.

The launchers here are small Python programs: one rank per session as with torchrun, exit code 0 after a kill as with
DeepSpeed's, ranks that ignore everything but SIGKILL.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fmri_scale.training.supervise import processes

RANK = """
import json, os, signal, sys, time
run, behaviour = sys.argv[1], sys.argv[2]
def status(state, code):
    with open(run + "/status.json", "w") as file:
        json.dump({"state": state, "step": 7, "steps": 9, "exit_code": code}, file)
def save(*unused):  # together, as a checkpoint is: each waits until the other has been asked too
    open(f"{run}/asked_{os.environ['RANK']}", "w").close()
    while not all(os.path.exists(f"{run}/asked_{r}") for r in "01"): time.sleep(0.01)
    open(f"{run}/saved_{os.environ['RANK']}", "w").close()
    if os.environ["RANK"] == "0": status("requeue", 75)
    os._exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "deaf" else save)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
open(f"{run}/up_{os.environ['RANK']}", "w").close()
if behaviour == "done":
    if os.environ["RANK"] == "0": status("done", 0)
    sys.exit(0)
if behaviour == "crash": os._exit(17)
time.sleep(600)
"""

LAUNCHER = """
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, sys.argv[1], *sys.argv[2:]], env={**os.environ, "RANK": str(r)},
                          start_new_session=True) for r in range(2)]
open(sys.argv[2] + "/launcher", "w").write(str(os.getpid()))
codes = [rank.wait() for rank in ranks]
sys.exit(max(0, *codes))  # as DeepSpeed's: a negative code, of a killed rank, ends as 0
"""


@pytest.fixture
def start(tmp_path):
    """Start a supervised launch with a behaviour of its ranks; give the process and the run folder."""
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    started = []

    def begin(behaviour, *options):
        token = f"test-{os.getpid()}-{len(started)}-{time.time_ns()}"
        command = [sys.executable, "-m", "fmri_scale.training.supervise", "run", "--job", token]
        command += ["--run-dir", str(run_dir), "--settle", "0.5", *options, "--"]
        command += [sys.executable, str(tmp_path / "launcher.py"), str(tmp_path / "rank.py"), str(run_dir), behaviour]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append((token, process))
        return process, run_dir, token

    yield begin
    for token, process in started:
        process.kill()
        process.wait()
        assert not processes.kill_all(token), "left over after the test"


def wait_for(*paths: Path):
    end = time.monotonic() + 20
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"{paths} did not appear"
        time.sleep(0.02)


def up(run_dir):
    wait_for(run_dir / "up_0", run_dir / "up_1", run_dir / "launcher")
    time.sleep(0.1)


def finish(process, seconds=30):
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def test_done_is_done(start):
    process, run_dir, token = start("done")
    code, said = finish(process)
    assert code == 0, said
    assert not processes.marked(token)
    row = json.loads((run_dir / "launches.jsonl").read_text())
    assert (row["launch"], row["exit_code"], row["step"]) == (token, 0, 7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_request_reaches_all_ranks_together(start, number):
    process, run_dir, token = start("work")
    up(run_dir)
    process.send_signal(number)
    code, said = finish(process)
    assert code == 75, said
    assert len(list(run_dir.glob("saved_*"))) == 2
    assert not processes.marked(token)


def test_deaf_ranks_are_killed_after_the_grace(start):
    process, run_dir, token = start("deaf", "--grace", "1")
    up(run_dir)
    process.terminate()
    code, said = finish(process)
    assert code not in (0, 75), said
    assert not processes.marked(token)


def test_killed_launcher_is_no_success_and_leaves_no_rank(start):
    process, run_dir, token = start("deaf", "--grace", "1")
    up(run_dir)
    os.kill(int((run_dir / "launcher").read_text()), signal.SIGKILL)
    code, said = finish(process)
    assert code == 137, said
    assert "outlived the launcher" in said
    assert not processes.marked(token)


def test_ranks_of_a_killed_launcher_may_save(start):
    process, run_dir, token = start("work")
    up(run_dir)
    os.kill(int((run_dir / "launcher").read_text()), signal.SIGKILL)
    code, said = finish(process)
    assert code == 75, said
    assert len(list(run_dir.glob("saved_*"))) == 2
    assert not processes.marked(token)


def test_zero_after_killed_ranks_is_not_believed(start):
    process, run_dir, token = start("work")
    up(run_dir)
    processes.send(processes.ranks(processes.marked(token)), signal.SIGKILL)
    code, said = finish(process)
    assert code == 1, said
    assert "reported success, but status.json was not written" in said


@pytest.mark.parametrize("which", ["outer", "inner"])
def test_killed_supervisor_leaves_no_rank(start, which):
    process, run_dir, token = start("work", "--grace", "5")
    up(run_dir)
    inner = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(process.pid if which == "outer" else inner, signal.SIGKILL)
    code, said = finish(process)
    assert code != 0, said
    end = time.monotonic() + 15
    while processes.marked(token) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes.marked(token)
    assert len(list(run_dir.glob("saved_*"))) == 2


def test_crash_is_started_again_while_there_is_progress(start, tmp_path):
    process, run_dir, _ = start("crash", "--restarts", "2")
    code, said = finish(process, 60)
    assert code == 17, said
    rows = [json.loads(line) for line in (run_dir / "launches.jsonl").read_text().splitlines()]
    assert [row["exit_code"] for row in rows] == [17, 17, 17]


def test_command_that_does_not_exist_is_named():
    command = [sys.executable, "-m", "fmri_scale.training.supervise", "run", "--", "no-such-launcher"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 127
    assert "no-such-launcher: No such file" in done.stderr
