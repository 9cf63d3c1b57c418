"""The watches of a run, one by one: spikes, weights that differ, hangs, slow ranks, the disk, the job's end, traces."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fmri_scale.errors import CheckpointError, LaunchError, TrainingError
from fmri_scale.training.phases import PHASES, Phases
from fmri_scale.training.tracing import ON_SIGNAL, Profiler
from fmri_scale.training.watch import divergence, finite, job_end, space, stragglers
from fmri_scale.training.watch.job_end import JobEnd, end_time
from fmri_scale.training.watch.spikes import FEWEST, LossSpikes
from tests.helpers.tiny_run import write_run

CPU = torch.device("cpu")


def test_spike_is_told_and_the_level_after_it_is_not(caplog):
    spikes = LossSpikes(6.0, 64)
    falling = [2.0 - 0.01 * step + 0.05 * (-1) ** step for step in range(60)]
    assert not any(spikes.note(step, loss) for step, loss in enumerate(falling))
    with caplog.at_level("WARNING", logger="fmri_scale"):
        assert spikes.note(60, 4.0)
    assert "step 60: loss 4.0000 is a spike" in caplog.text
    assert not spikes.note(61, 1.4)
    assert spikes.total == 1


def test_spikes_are_judged_as_before_after_a_resume():
    losses = [1.0 + 0.01 * (step % 7) for step in range(50)] + [1.3] * 3
    unbroken = LossSpikes(6.0, 32)
    wanted = [unbroken.note(step, loss) for step, loss in enumerate(losses)]
    first = LossSpikes(6.0, 32)
    found = [first.note(step, loss) for step, loss in enumerate(losses[:40])]
    second = LossSpikes(6.0, 32, json.loads(json.dumps(first.state())))
    found += [second.note(step, loss) for step, loss in enumerate(losses[40:], 40)]
    assert found == wanted
    assert second.state() == unbroken.state()
    assert sum(wanted) == 3


def test_few_losses_or_no_limit_make_no_spike():
    few, none = LossSpikes(1.0, 64), LossSpikes(0.0, 64)
    assert not any(few.note(step, 10.0**step) for step in range(FEWEST))
    assert not any(none.note(step, 1.0 if step < 90 else 1e9) for step in range(100))
    assert not LossSpikes(6.0, 64).note(1, float("nan"))


def test_fingerprint_sees_every_bit_and_every_place():
    module = torch.nn.Linear(5, 3)
    before = divergence.fingerprints(module)
    assert before == divergence.fingerprints(module)
    values = module.weight.data.view(torch.int32).view(-1)
    for bit in (0, 13, 30, 31):
        flip = 1 << bit if bit < 31 else -(1 << 31)
        values[7] ^= flip
        changed = divergence.fingerprints(module)
        assert changed["weight"] != before["weight"]
        assert changed["bias"] == before["bias"]
        values[7] ^= flip
    values[[0, 1]] = values[[1, 0]]
    assert divergence.fingerprints(module) != before


def test_rank_with_other_weights_is_named(monkeypatch):
    module = torch.nn.Linear(2, 2)

    def three_ranks(mine):
        if isinstance(mine, str):  # the digests of their weights
            return [mine, mine, "another"]
        odd = {**mine["weights"], "bias": mine["weights"]["bias"] + 1}
        return [mine, mine, {"host": "node7", "weights": odd}]

    monkeypatch.setattr(divergence, "gather", three_ranks)
    with pytest.raises(TrainingError, match=r"after step 9 the weights of rank 2 \(node7\) .* \(first in bias\)"):
        divergence.check(module, 9)
    monkeypatch.setattr(divergence, "gather", lambda mine: [mine] * 3)
    divergence.check(module, 9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weight_that_is_not_finite_is_named(value):
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3))
    finite.require(module, 9)
    module[1].bias.data[2] = value
    with pytest.raises(
        TrainingError, match=r"after step 9 weights of rank 0 \(.*\) are not finite \(first in 1\.bias\)"
    ):
        finite.require(module, 9)


def test_slow_rank_is_named_with_its_host(caplog):
    found = stragglers.slowest([0.1, 1.0, 0.1, 0.12], ["a", "b", "c", "d"])
    assert (found.rank, found.host) == (1, "b")
    assert found.ratio == pytest.approx(10.0)
    with caplog.at_level("WARNING", logger="fmri_scale"):
        assert stragglers.warn(found, 3.0, step=20)
        assert not stragglers.warn(stragglers.slowest([0.1, 0.12], ["a", "b"]), 3.0, step=20)
        assert not stragglers.warn(found, 0.0, step=20)
    assert "step 20: rank 1 on b needs 1.00 s of its own" in caplog.text
    assert stragglers.slowest([0.2], ["a"]).ratio == 1.0


def test_checkpoint_that_does_not_fit_is_refused_before_it_is_written(tmp_path, monkeypatch):
    space.require(tmp_path, 1e3, 4)
    checkpoint = write_run(tmp_path, step=3)
    size = sum(path.stat().st_size for path in checkpoint.path.rglob("*") if path.is_file())
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Free(size))
    with pytest.raises(CheckpointError, match=r"of step 4 needs .* are free; the newest checkpoint is of step 3: make"):
        space.require(tmp_path, 0.0, 4)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Free(2 * size))
    space.require(tmp_path, 0.0, 4)


class Free:
    """What `shutil.disk_usage` returns."""

    def __init__(self, free):
        self.free = free


def test_end_of_the_job_is_what_the_scheduler_says(monkeypatch):
    assert end_time({}) is None
    assert end_time({"SLURM_JOB_END_TIME": "1000"}) == 1000.0
    assert end_time({"SLURM_JOB_END_TIME": "1000", "FMRI_SCALE_END_TIME": "900"}) == 900.0
    with pytest.raises(LaunchError, match="FMRI_SCALE_END_TIME='soon': expected seconds since 1970"):
        end_time({"FMRI_SCALE_END_TIME": "soon"})


def test_slurm_is_asked_where_it_sets_no_variable(tmp_path, monkeypatch, caplog):
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$3" = 77 ] && echo 2026-01-02T03:04:05 || echo N/A\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    wanted = time.mktime(time.strptime("2026-01-02T03:04:05", "%Y-%m-%dT%H:%M:%S"))
    assert end_time({"SLURM_JOB_ID": "77"}) == wanted
    with caplog.at_level("WARNING", logger="fmri_scale"):
        assert end_time({"SLURM_JOB_ID": "78"}) is None
    assert f"set {job_end.OWN} to stop in time" in caplog.text


def test_stop_leaves_time_for_a_step_and_a_checkpoint():
    end = JobEnd(1000.0, margin_s=60.0)
    end.note_save(20.0)
    assert not end.is_near(5.0, now=889.0)
    assert end.is_near(5.0, now=891.0)
    assert not JobEnd(None, 60.0).is_near(5.0, now=1e12)


HANGS = """
import sys, threading, time
from pathlib import Path
from fmri_scale.training.watch.hang import HangWatch
watch = HangWatch(2.0, Path(sys.argv[1]) / "stacks.txt", lambda message: print(message, flush=True), grace_s=0.2)
for _ in range(4):
    time.sleep(0.3)
    watch.beat()
def stands_still():
    if sys.argv[2] == "python":
        time.sleep(60)
    # the interpreter's lock is held: no other thread of Python runs
    import ctypes
    ctypes.PyDLL(None).sleep(60)
print("beating", flush=True)
stands_still()
"""


@pytest.mark.parametrize("how", ["python", "lock"])
def test_hang_ends_the_process_with_its_stacks(tmp_path, how):
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path), how], capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 1
    assert ended.stdout.startswith("beating")
    assert "in stands_still" in (tmp_path / "stacks.txt").read_text()
    assert ("no step for" in ended.stdout) == (how == "python")


def test_phases_are_apart_and_nested_ones_count_once(monkeypatch):
    phases, now = Phases(CPU), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def work(seconds):
        now[0] += seconds

    class Engine:
        def allreduce_gradients(self):
            work(8.0)

    engine = Engine()
    phases.watch_reduction(engine)
    for _ in range(2):
        with phases("forward"):
            work(1.0)
        work(100.0)  # of no phase
        with phases("backward"):
            work(2.0)
            engine.allreduce_gradients()
            work(4.0)
        phases.end_step()
    row = phases.row()
    wanted = {"forward": 1.0, "backward": 6.0, "reduce": 8.0}
    assert row == {f"time_{name}_s": wanted.get(name, 0.0) for name in PHASES}
    assert phases.own_s == 7.0
    assert not any(phases.row().values())


def traces(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "profile").glob("*")) if (folder / "profile").exists() else []


def run_steps(profiler: Profiler, first: int, last: int) -> None:
    for step in range(first, last + 1):
        profiler.before(step)
        torch.randn(64, 64).mm(torch.randn(64, 64))
        profiler.after(step)


def test_chosen_steps_are_traced(tmp_path):
    profiler = Profiler(tmp_path, [2, 3], 0, CPU)
    run_steps(profiler, 1, 5)
    profiler.close(5)
    assert traces(tmp_path) == ["steps_2_3_rank_0.json.gz", "steps_2_3_rank_0.txt"]
    packed = (tmp_path / "profile" / "steps_2_3_rank_0.json.gz").read_bytes()
    trace = json.loads(gzip.decompress(packed))
    assert sum(event["name"] == "aten::mm" for event in trace["traceEvents"]) == 2
    assert "aten::mm" in (tmp_path / "profile" / "steps_2_3_rank_0.txt").read_text()


def test_signal_traces_the_next_steps_of_any_rank(tmp_path):
    profiler = Profiler(tmp_path, [], 3, CPU)
    run_steps(profiler, 1, 2)
    os.kill(os.getpid(), signal.SIGUSR2)
    run_steps(profiler, 3, 9)
    profiler.close(9)
    last = 3 + ON_SIGNAL - 1
    assert traces(tmp_path) == [f"steps_3_{last}_rank_3.json.gz", f"steps_3_{last}_rank_3.txt"]
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_run_that_ends_in_a_trace_keeps_it(tmp_path):
    profiler = Profiler(tmp_path, [2, 100], 0, CPU)
    run_steps(profiler, 1, 3)
    profiler.close(3)
    assert traces(tmp_path) == ["steps_2_3_rank_0.json.gz", "steps_2_3_rank_0.txt"]


def test_a_run_that_gets_on_within_the_grace_period_is_not_ended(tmp_path):
    program = """
import sys, time
from pathlib import Path
from fmri_scale.training.watch.hang import HangWatch
stacks = Path(sys.argv[1]) / "stacks.txt"
watch = HangWatch(0.3, stacks, lambda message: print(repr(message), flush=True), grace_s=1.0)
while not watch.message:
    time.sleep(0.01)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    watch.beat()
    time.sleep(0.05)
watch.close()
print("alive", repr(watch.message))
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    told = done.stdout.splitlines()
    assert told[0].startswith("'no step for")
    assert told[1:] == ["''", "alive ''"]
