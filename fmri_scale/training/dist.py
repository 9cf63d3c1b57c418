"""Start and stop communication between the ranks: backend, device, timeouts, and who reports an error.

NCCL on GPUs, gloo on CPUs. A single process has a process group too (DeepSpeed wants one) but uses no network.
"""

import contextlib
import importlib
import logging
import os
import threading
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fmri_scale.errors import FmriScaleError, LaunchError, LostRankError
from fmri_scale.kernels.memory import reuse_freed_memory
from fmri_scale.training.folder import read_status
from fmri_scale.training.launch import Launch

_REPORTED = "fmri_scale/error"
_ANSWER_S = 10.0
"Seconds that rank 0's store has to answer; over a cut link torch would wait for ever."
T = TypeVar("T")


def device_of(launch: Launch) -> torch.device:
    """Return the device of this rank: its GPU where there are GPUs, else the CPU.

    Raises
    ------
    LaunchError : more ranks on this machine than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if launch.local_rank >= torch.cuda.device_count():
        raise LaunchError(
            f"local rank {launch.local_rank} but {torch.cuda.device_count()} visible GPUs: start as many ranks on a "
            "machine as it has GPUs; under Slurm ask for --gpus-per-node, since --gpus-per-task shows each rank but one"
        )
    return torch.device("cuda", launch.local_rank)


def start(launch: Launch, timeout_s: float) -> torch.device:
    """Join the process group; return this rank's device. Call `launch.export()` before.

    Raises
    ------
    LaunchError : the ranks do not find each other within `timeout_s`.
    """
    device = device_of(launch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        reuse_freed_memory()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed's own search warns where there is no GPU
    deepspeed = _quiet_deepspeed()
    backend, timeout = ("nccl" if device.type == "cuda" else "gloo"), timedelta(seconds=timeout_s)
    try:
        if launch.world_size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    except (RuntimeError, ValueError) as error:  # torch's errors of rendezvous are RuntimeErrors
        where = f"{launch.address}:{launch.port}"
        raise LaunchError(f"rank {launch.rank} of {launch.world_size} cannot join at {where}: {error}") from error
    return device


def limit_waiting(timeout_s: float) -> int:
    """Give every process group the run's timeout; return how many there are.

    DeepSpeed 0.19.8 makes its own groups without the timeout it was given, so a dead peer holds ZeRO's collectives
    for torch's default of 10 to 30 minutes (`test_timeout_reaches_all_groups`). Call after the engine is made.
    """
    from torch.distributed import distributed_c10d as c10d

    groups = list(c10d._world.pg_map)
    for group in groups:
        c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)
    return len(groups)


def stop() -> None:
    """Leave the process group; without this, ranks can abort at exit after all work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def announce(message: str) -> bool:
    """Tell all ranks of an error that ends the run; return True on the one rank that shall print it: the first.

    Before the ranks have met, each meets the same error of its command line by itself, and rank 0 prints it.
    """
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"

    def tell(store: Any) -> bool:
        first: bool = store.add(f"{_REPORTED}/count", 1) == 1
        if first:
            store.set(_REPORTED, message)
        return first

    first = _ask(tell)
    return dist.get_rank() == 1 if first is None else first


def explain(error: RuntimeError, run_dir: Path) -> FmriScaleError | None:
    """Return why a collective operation failed: another rank's own error, or its loss; None for any other error.

    Parameters
    ----------
    run_dir : where rank 0 leaves its error in status.json before it goes.
    """
    if not dist.is_initialized() or not _is_communication(error):
        return None
    told = _ask(lambda store: store.get(_REPORTED).decode() if store.check([_REPORTED]) else "")
    if told is None:
        status = read_status(run_dir)
        told = status["message"] if status.get("state") == "failed" and status.get("exit_code") == 2 else ""
    if told:
        return LaunchError(told)
    reason = str(error).splitlines()[0].partition("] ")[2].partition(". ")[0] or type(error).__name__
    return LostRankError(f"lost another rank ({reason}); start the same command again to continue")


def _is_communication(error: RuntimeError) -> bool:
    """NCCL and the store raise DistError; gloo raises RuntimeError with its source file in the text."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _ask(question: Callable[[Any], T]) -> T | None:
    """Return what the ranks' store on rank 0 answers; None where it has gone or cannot be reached any more."""
    from torch.distributed import distributed_c10d as c10d

    store, answers = c10d._get_default_store(), []

    def wait() -> None:
        with contextlib.suppress(RuntimeError):  # it has gone with rank 0
            answers.append(question(store))

    thread = threading.Thread(target=wait, name="store", daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    return answers[0] if answers else None


def exchange(values: list[float], device: torch.device) -> list[list[float]]:
    """Return every rank's numbers (equally many each) in the order of ranks, in float64."""
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return torch.stack(everyone).tolist()


def _quiet_deepspeed() -> Any:
    """Import DeepSpeed, lower its voice (and torch's about the collectives it calls), and keep it from compiling.

    Its backend builds the C++ extension `deepspeed_shm_comm` at the first start on a CPU (28 s, and a compiler),
    even for one process. It serves inference only (`inference_all_reduce`), so it is declared unavailable
    (`test_no_compiler_is_needed`).
    """
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    deepspeed = importlib.import_module("deepspeed")
    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
