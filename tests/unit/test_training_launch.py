"""A rank knows its place from whatever started it, and says clearly where that does not add up."""

import pytest
import torch

from fmri_scale.errors import LaunchError
from fmri_scale.training import dist
from fmri_scale.training.launch import Launch, discover, first_host


def test_no_launcher_is_a_single_process_without_network():
    assert discover({}) == Launch(0, 1, 0, "", 0, "single")


def test_torchrun_and_deepspeed():
    env = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29501"}
    assert discover(env) == Launch(3, 4, 1, "node0", 29501, "environment")


def test_launcher_inside_a_slurm_step_wins():
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert discover({**env, "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}).world_size == 2


def test_slurm_step():
    env = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "41234"}
    found = discover({**env, "SLURM_STEP_NODELIST": "gpu[07-08,12]"})
    assert found == Launch(9, 16, 1, "gpu07", 20000 + 41234 % 20000, "slurm")
    assert discover({**env, "MASTER_ADDR": "ib0", "MASTER_PORT": "5"}) == Launch(9, 16, 1, "ib0", 5, "slurm")
    with pytest.raises(LaunchError, match="set MASTER_ADDR"):
        discover(env)


def test_batch_script_of_slurm_is_a_single_process():
    assert discover({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "n[1-2]"}).world_size == 1


def test_openmpi():
    env = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
    assert discover({**env, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}) == Launch(2, 4, 2, "127.0.0.1", 29500, "openmpi")
    with pytest.raises(LaunchError, match="-x MASTER_ADDR=HOST"):
        discover({**env, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two': expected a whole number"),
        ({"WORLD_SIZE": "1"}, "but not RANK"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "rank 2 of 2",
        ),
    ],
)
def test_what_does_not_add_up_is_named(env, message):
    with pytest.raises(LaunchError, match=message):
        discover(env)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-08,12]", "gpu07"),
        ("node1,node2", "node1"),
        ("single", "single"),
        ("r1i0n[3,5],r2i0n1", "r1i0n3"),
        ("a[1-2]-ib", "a1-ib"),
        ("", ""),
    ],
)
def test_first_host_of_a_slurm_list(nodes, first):
    assert first_host(nodes) == first


def test_more_ranks_than_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert dist.device_of(Launch(1, 2, 1, "a", 1, "environment")) == torch.device("cuda", 1)
    with pytest.raises(LaunchError, match=r"local rank 2 but 2 visible GPUs.*--gpus-per-node"):
        dist.device_of(Launch(2, 3, 2, "a", 1, "environment"))
