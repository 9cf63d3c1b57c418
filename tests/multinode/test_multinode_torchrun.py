"""torchrun and `deepspeed --no_ssh` on real hosts that cannot log in to each other: each host starts its own share."""

import pytest

from tests.multinode.cluster import wait_for
from tests.multinode.runs import PATIENCE_S, ROOT, Run, unbroken

STEPS = 8
KEYS = {"optim__steps": STEPS, "optim__global_batch": 8, "checkpoint__every_steps": 2, "engine__timeout_s": 20}


def torchrun(run, job):
    """Start the same command on two hosts."""
    common = {"NODES": 2, "MASTER_ADDR": run.cluster.address("node0"), "JOB": job, "RANKS": 2}
    return [run.start(f"node{i}", "torchrun.sh", NODE_RANK=i, **common) for i in range(2)]


def test_torchrun_on_two_hosts_stops_resumes_and_ends_as_one_process_does(cluster, corpus, tmp_path):
    reference = unbroken(cluster, tmp_path / "reference", corpus, **KEYS)
    run = Run(cluster, tmp_path / "torchrun", corpus, **KEYS)
    jobs = torchrun(run, "first")
    jobs[0].wait_until(lambda: run.saved_step() >= 2)
    jobs[1].signal("USR1")  # one host is taken away; all stop together
    assert [job.wait() for job in jobs] == [75, 75], jobs[0].text() + jobs[1].text()
    stopped = run.saved_step()
    assert run.status()["step"] == stopped
    wait_for(lambda: not run.left_over(), 20, "no process left")

    jobs = torchrun(run, "second")
    assert [job.wait() for job in jobs] == [0, 0], jobs[0].text() + jobs[1].text()
    assert [loss for _, loss in run.losses()] == pytest.approx([loss for _, loss in reference.losses()], rel=1e-4)
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
    wait_for(lambda: not run.left_over(), 20, "no process left")


def test_deepspeed_without_ssh_trains_across_hosts(cluster, corpus, tmp_path):
    run = Run(cluster, tmp_path, corpus, **KEYS)
    hostfile = run.hostfile(node0=1, node1=1)
    words = " ".join(f"'{item}'" for item in run.arguments)
    launcher = f"--no_ssh --hostfile {hostfile} --master_addr {cluster.address('node0')} --master_port 23456"
    program = f"--no_local_rank {ROOT}/fmri_scale/train.py {words}"
    supervise = f"python -m fmri_scale.training.supervise run --run-dir {run.run_dir}"
    prepare = f"source {ROOT}/launch/env.sh; export OMP_NUM_THREADS=1"
    other = cluster.start(
        "node1",
        f"{prepare}; {supervise} --secondary -- deepspeed {launcher} --node_rank 1 {program}",
        tmp_path / "1.txt",
    )
    cluster.run("node0", f"{prepare}; {supervise} -- deepspeed {launcher} --node_rank 0 {program}", PATIENCE_S)
    assert other.wait(PATIENCE_S) == 0, (tmp_path / "1.txt").read_text()
    assert run.status()["state"] == "done"
    assert [row["exit_code"] for row in run.launches()] == [0]
