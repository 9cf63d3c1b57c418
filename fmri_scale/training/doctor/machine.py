"""Limits and settings of the machine that make training slow or end it: memory, shared memory, limits, environment."""

import os
import re
import resource
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from fmri_scale.training.doctor.findings import BLOCK, NOTE, OK, WARN, Finding

SLOW = {
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for",
    "NCCL_P2P_DISABLE": "GPUs of a machine exchange through its memory",
    "NCCL_SHM_DISABLE": "GPUs of a machine exchange over the network",
    "NCCL_IB_DISABLE": "InfiniBand is not used",
    "TORCH_NCCL_BLOCKING_WAIT": "collectives cannot overlap with computing",
}
"Variables that slow training down where they are set to 1, and how."
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
SHM_BYTES = 1 << 30
OPEN_FILES = 4096


def memory(ring_mb: float, ranks_here: int) -> Iterator[Finding]:
    """Yield whether the memory for reading ahead is there, and shared memory for NCCL.

    Parameters
    ----------
    ring_mb : `data.prefetch_mb` of a rank, in MB.
    ranks_here : ranks on this machine.
    """
    available, needed = available_memory(), ring_mb * 1e6 * ranks_here
    found = f"{available / 1e9:.1f} GB free, {needed / 1e9:.1f} GB of it for clips read ahead by {ranks_here} ranks"
    remedy = "lower data.prefetch_mb, or end other processes"
    yield Finding("memory", BLOCK if needed > available else OK, found, remedy)
    try:
        size = os.statvfs("/dev/shm")
    except FileNotFoundError:
        yield Finding("shared memory", WARN, "there is no /dev/shm", "mount a tmpfs there: NCCL and wandb use it")
        return
    total = size.f_frsize * size.f_blocks
    small = ranks_here > 1 and total < SHM_BYTES
    remedy = "containers: --shm-size=8g or --ipc=host; NCCL moves data between GPUs of a machine through it"
    yield Finding("shared memory", WARN if small else OK, f"/dev/shm has {total / 1e9:.2f} GB", remedy)


def available_memory() -> float:
    """Return the bytes that new processes can use: what the machine has left, within the container's limit."""
    text = Path("/proc/meminfo").read_text()
    left = [float(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]) * 1024]  # type: ignore[index]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and limit.read_text().strip() != "max":
        left.append(float(limit.read_text()) - float(used.read_text()))
    return min(left)


def limits(has_gpu: bool) -> Iterator[Finding]:
    """Yield limits of this process that are too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < OPEN_FILES
    remedy = f"ulimit -n {hard if 0 < hard < 65536 else 65536}; every open shard and connection takes one"
    yield Finding("open files", WARN if few else OK, f"{soft} allowed at a time", remedy)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if has_gpu and locked != resource.RLIM_INFINITY and any(Path("/sys/class/infiniband").glob("*")):
        remedy = "ulimit -l unlimited (Slurm: PropagateResourceLimitsExcept=MEMLOCK)"
        yield Finding("locked memory", WARN, f"{locked / 1e6:.0f} MB allowed; InfiniBand needs it unlimited", remedy)


def environment(variables: Mapping[str, str], ranks_here: int) -> Iterator[Finding]:
    """Yield variables that slow the run down or name what does not exist."""
    for name, how in SLOW.items():
        if variables.get(name, "0") not in ("0", ""):
            yield Finding("environment", WARN, f"{name}={variables[name]}: {how}", f"unset {name}")
    interfaces = [name for _, name in socket.if_nameindex()]
    for name in INTERFACES:
        unknown = _unknown_interfaces(variables.get(name, ""), interfaces)
        if unknown:
            found = f"{name}={variables[name]}: this machine has {', '.join(interfaces)}"
            yield Finding("environment", BLOCK, found, "name an interface that all machines have, or unset it")
    threads, cores = int(variables.get("OMP_NUM_THREADS") or 0), os.cpu_count() or 1
    if threads * ranks_here > cores or (not threads and ranks_here > 1):
        found = f"OMP_NUM_THREADS={threads or 'unset'} with {ranks_here} ranks on {cores} cores"
        yield Finding("environment", WARN, found, f"export OMP_NUM_THREADS={max(1, cores // ranks_here)}")


def _unknown_interfaces(value: str, known: list[str]) -> list[str]:
    """Return names in NCCL's notation (`eth,ib`: prefixes; `=eth0`: exact; `^lo`: all but) that match nothing."""
    if not value or value.startswith("^"):
        return []
    exact = value.startswith("=")
    names = [name.partition(":")[0] for name in value.lstrip("=").split(",") if name]
    return [n for n in names if not any(k == n if exact else k.startswith(n) for k in known)]


def name_resolution(several_machines: bool) -> Iterator[Finding]:
    """Yield whether this machine's name leads to an address that others can use: gloo binds to it."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        level, found = (WARN if several_machines else NOTE), f"{name} has no address"
        yield Finding("host name", level, found, "add it to /etc/hosts or the DNS, or set GLOO_SOCKET_IFNAME")
        return
    loop = several_machines and address.startswith("127.")
    remedy = f"give {name} its network address in /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    yield Finding("host name", WARN if loop else OK, f"{name} is {address}", remedy)
