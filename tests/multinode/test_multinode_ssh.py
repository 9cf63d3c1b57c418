"""`deepspeed --hostfile` over ssh on real hosts: trains, stops, resumes, and survives what happens to machines."""

import os
import random
import time

import pytest
import torch

from tests.multinode.cluster import wait_for
from tests.multinode.runs import Run, unbroken

STEPS = 8
KEYS = {"optim__steps": STEPS, "optim__global_batch": 12, "checkpoint__every_steps": 1, "engine__timeout_s": 20}
SLOW = {**KEYS, "optim__steps": 400}
"Long enough to be interrupted at leisure."
END_S = 300.0
"Seconds in which a run has ended whose machine or link has gone: engine.timeout_s, ssh's and the supervisor's, twice."
POWER_CUTS = int(os.environ.get("FMRI_SCALE_KILLS", "2"))


@pytest.fixture(scope="module")
def reference(cluster, corpus, tmp_path_factory):
    """The same run on one process."""
    return unbroken(cluster, tmp_path_factory.mktemp("reference"), corpus, **KEYS)


def assert_no_process_is_left(run, seconds=60):
    wait_for(lambda: not run.left_over(), seconds, f"the end of {run.left_over()}")


def assert_same_curve(run, reference):
    found, wanted = run.losses(), reference.losses()
    assert [step for step, _ in found] == [step for step, _ in wanted] == list(range(1, STEPS + 1))
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], rel=1e-4)


def test_three_hosts_stop_on_sigterm_resume_and_end_as_one_process_does(cluster, corpus, tmp_path, reference):
    run = Run(cluster, tmp_path, corpus, **KEYS)
    hostfile = run.hostfile(node0=1, node1=1, node2=1)
    job = run.start("node0", "multinode.sh", HOSTFILE=hostfile)
    job.wait_until(lambda: run.saved_step() >= 2)
    job.signal("TERM")
    assert job.wait() == 75, job.text()
    assert run.status()["state"] == "requeue"
    stopped = run.saved_step()
    assert stopped == run.status()["step"] < STEPS
    assert_no_process_is_left(run)

    job = run.start("node0", "multinode.sh", HOSTFILE=hostfile)
    assert job.wait() == 0, job.text()
    assert f"step {STEPS}/{STEPS}" in job.text()  # rank 0's output is shown
    assert_same_curve(run, reference)
    assert_no_process_is_left(run)
    assert len(list(run.run_dir.glob("logs/output/*_rank2.log"))) == 2


def test_environment_reaches_the_ranks_of_all_hosts(cluster, corpus, tmp_path):
    run = Run(cluster, tmp_path, corpus, **SLOW)
    job = run.start(
        "node0", "multinode.sh", 'launch.env=["FMRI_TEST=two words"]',
        HOSTFILE=run.hostfile(node0=1, node1=1), NCCL_SOCKET_IFNAME="eth0", WANDB_API_KEY="secret",
    )  # fmt: skip
    job.wait_until(lambda: run.saved_step() >= 1)
    for host in ("node0", "node1"):
        rank = run.rank_pid(host)
        environment = cluster.run(host, f"tr '\\0' '\\n' < /proc/{rank}/environ").stdout.splitlines()
        assert "FMRI_TEST=two words" in environment
        assert "NCCL_SOCKET_IFNAME=eth0" in environment
        assert not any(line.startswith("WANDB_API_KEY=") for line in environment)
    job.signal("INT")
    assert job.wait() in (75, 130), job.text()
    assert_no_process_is_left(run)


@pytest.mark.parametrize("victim", ["bin/deepspeed --hostfile", "training.supervise run", "pdsh -S"])
def test_killed_launcher_is_no_success_and_leaves_no_process(cluster, corpus, tmp_path, victim):
    run = Run(cluster, tmp_path, corpus, **SLOW)
    job = run.start("node0", "multinode.sh", HOSTFILE=run.hostfile(node0=2, node1=2))
    job.wait_until(lambda: run.saved_step() >= 1)
    job.signal("KILL", victim)
    assert job.wait() != 0, job.text()
    assert_no_process_is_left(run)


def test_killed_rank_ends_the_run_everywhere_and_a_restart_goes_on(cluster, corpus, tmp_path, reference):
    run = Run(cluster, tmp_path, corpus, **KEYS)
    job = run.start("node0", "multinode.sh", HOSTFILE=run.hostfile(node0=1, node1=1), RESTARTS=2)
    job.wait_until(lambda: run.saved_step() >= 2)
    cluster.run("node1", f"kill -KILL {run.rank_pid('node1')}")
    assert job.wait() == 0, job.text()
    assert "starting again from the newest checkpoint" in job.text()
    assert_same_curve(run, reference)
    assert_no_process_is_left(run)


def test_lost_machines_end_the_run_and_the_weights_are_those_of_the_unbroken_one(cluster, corpus, tmp_path):
    """Power cuts of node1 and node2 in turn, at random moments while checkpoints are written all the time."""
    keys = {**KEYS, "optim__steps": 6 + 5 * POWER_CUTS}
    whole, broken = Run(cluster, tmp_path / "whole", corpus, **keys), Run(cluster, tmp_path / "broken", corpus, **keys)
    slots = {"node0": 1, "node1": 1, "node2": 1}
    job = whole.start("node0", "multinode.sh", HOSTFILE=whole.hostfile(**slots))
    assert job.wait() == 0, job.text()

    seed = random.randrange(1000)
    print(f"random moments of seed {seed}")
    draw = random.Random(seed)
    hostfile = broken.hostfile(**slots)
    for number in range(POWER_CUTS):
        victim = ("node1", "node2")[number % 2]
        goal, pause = broken.saved_step() + draw.randint(1, 4), draw.uniform(0, 0.3)
        job = broken.start("node0", "multinode.sh", HOSTFILE=hostfile)
        job.wait_until(lambda goal=goal: broken.saved_step() >= goal)
        time.sleep(pause)
        cluster.power_off(victim)
        assert job.wait(END_S) not in (0, 75), job.text()
        assert_no_process_is_left(broken)
        cluster.power_on(victim)
    job = broken.start("node0", "multinode.sh", HOSTFILE=hostfile)
    assert job.wait() == 0, job.text()
    found, wanted = broken.weights(), whole.weights()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_cut_link_ends_the_run_on_both_sides(cluster, corpus, tmp_path):
    run = Run(cluster, tmp_path, corpus, **SLOW)
    job = run.start("node0", "multinode.sh", HOSTFILE=run.hostfile(node0=1, node1=1))
    job.wait_until(lambda: run.saved_step() >= 1)
    cluster.link("node1", up=False)
    try:
        assert job.wait(END_S) not in (0, 75), job.text()
        assert_no_process_is_left(run)
    finally:
        cluster.link("node1", up=True)
