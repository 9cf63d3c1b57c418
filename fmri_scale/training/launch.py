"""Which rank this process is, told by whatever started it: torchrun, deepspeed, srun, mpirun or nothing.

Reads the environment only; starts no communication (training/dist.py does). No mpi4py is needed.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fmri_scale.errors import LaunchError

TORCH_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process among the processes of the run.

    Attributes
    ----------
    rank, world_size : number of this process and of all.
    local_rank : number of this process on its machine; the index of its GPU.
    address, port : where rank 0 listens; empty and 0 for a single process, which needs no network.
    source : what told: environment, slurm, openmpi or single.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    source: str

    def export(self) -> None:
        """Set the variables that torch and DeepSpeed read."""
        os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.world_size), LOCAL_RANK=str(self.local_rank))
        if self.address:
            os.environ.update(MASTER_ADDR=self.address, MASTER_PORT=str(self.port))


def discover(env: Mapping[str, str] = os.environ) -> Launch:
    """Return this process' place in the run.

    In this order: variables of torchrun and deepspeed; a Slurm step of several tasks; OpenMPI; a single process.
    A Slurm allocation without a step (a batch script, an interactive shell) is a single process.

    Raises
    ------
    LaunchError : variables that are missing, no numbers, or do not fit together.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        return _from_torch(env)
    if _number(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _from_slurm(env)
    if _number(env, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        return _from_openmpi(env)
    return Launch(0, 1, 0, "", 0, "single")


def _from_torch(env: Mapping[str, str]) -> Launch:
    world_size = _number(env, "WORLD_SIZE", 1)
    needed = TORCH_KEYS if world_size > 1 else ("RANK", "WORLD_SIZE")
    missing = [key for key in needed if key not in env]
    if missing:
        raise LaunchError(
            f"the environment sets {', '.join(k for k in TORCH_KEYS if k in env)} but not {', '.join(missing)}; start "
            "with deepspeed, torchrun or srun, or unset RANK and WORLD_SIZE for a single process"
        )
    address = env.get("MASTER_ADDR", "") if world_size > 1 else ""
    port = _number(env, "MASTER_PORT", 0) if world_size > 1 else 0
    return _checked(
        Launch(_number(env, "RANK"), world_size, _number(env, "LOCAL_RANK", 0), address, port, "environment")
    )


def _from_slurm(env: Mapping[str, str]) -> Launch:
    address = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))
    if not address:
        raise LaunchError("a Slurm step without SLURM_STEP_NODELIST: set MASTER_ADDR to the first node's name")
    port = _number(env, "MASTER_PORT", 20000 + _number(env, "SLURM_JOB_ID", 0) % 20000)
    rank, local_rank = _number(env, "SLURM_PROCID"), _number(env, "SLURM_LOCALID")
    return _checked(Launch(rank, _number(env, "SLURM_STEP_NUM_TASKS"), local_rank, address, port, "slurm"))


def _from_openmpi(env: Mapping[str, str]) -> Launch:
    nodes = _number(env, "OMPI_COMM_WORLD_SIZE") // max(1, _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    address = env.get("MASTER_ADDR") or ("127.0.0.1" if nodes == 1 else "")
    if not address:
        raise LaunchError("mpirun over several nodes: pass rank 0's host with -x MASTER_ADDR=HOST")
    rank, local_rank = _number(env, "OMPI_COMM_WORLD_RANK"), _number(env, "OMPI_COMM_WORLD_LOCAL_RANK")
    port = _number(env, "MASTER_PORT", 29500)
    return _checked(Launch(rank, _number(env, "OMPI_COMM_WORLD_SIZE"), local_rank, address, port, "openmpi"))


def first_host(node_list: str) -> str:
    """Return the first host of Slurm's compressed list: `gpu[03-05,9],login` gives `gpu03`."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\])?([^,\[]*)", node_list)
    return "".join(part or "" for part in match.groups()) if match else ""


def _checked(launch: Launch) -> Launch:
    if not 0 <= launch.rank < launch.world_size:
        raise LaunchError(f"rank {launch.rank} of {launch.world_size}: the {launch.source} variables do not add up")
    return launch


def _number(env: Mapping[str, str], key: str, default: int | None = None) -> int:
    text = env.get(key, "")
    if not text and default is not None:
        return default
    if not text.isdigit():
        raise LaunchError(f"environment variable {key}={text!r}: expected a whole number")
    return int(text)
