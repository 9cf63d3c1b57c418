"""Under a launcher: do all ranks see the same corpus, configuration and versions, and how fast is the way between them?

Every function here is called on every rank. The findings of all ranks are gathered; a difference names the ranks.
"""

import hashlib
import json
import os
import platform
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from fmri_scale.checkpoint.collective import gather
from fmri_scale.config import Config, to_dict
from fmri_scale.data import open_corpora
from fmri_scale.errors import FmriScaleError
from fmri_scale.training.doctor.findings import BLOCK, NOTE, OK, WARN, Finding, merged
from fmri_scale.training.launch import Launch
from fmri_scale.training.software import software_versions
from sharding.errors import ShardingError

MUST_AGREE = ("configuration", "corpus", "software")
CLOCK_S = 5.0
UNEVEN = 2.0
"Ratio to the median beyond which a link counts as slow."
BYTES = {"cuda": 256 << 20, "cpu": 8 << 20}
"Size of the bandwidth probe by device: large enough that latency does not count."
REPEATS = 5


def compare(config: Config, device: torch.device, findings: list[Finding]) -> list[Finding]:
    """Return the findings of all ranks, of their comparison, and about the network; the same on every rank."""
    all_findings = merged(gather(findings))
    dist.barrier()
    notes = gather(_notes(config))
    network = list(_network(device)) if not any(f.level == BLOCK for f in all_findings) else []
    return [*all_findings, *agreement(notes), *merged(gather(network))]


def ranks_on_this_machine(place: Launch) -> int:
    """Return how many ranks of the launch share this machine, as its launcher says; else one for each GPU."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"):  # torchrun, deepspeed, mpirun
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    tasks = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if place.source == "slurm" and tasks:
        return int(tasks[0])
    return min(place.world_size, max(1, torch.cuda.device_count()))


def agreement(notes: list[dict[str, Any]]) -> Iterator[Finding]:
    """Yield what the ranks have in common and what they have not."""
    for what in MUST_AGREE:
        groups: dict[str, list[int]] = {}
        for rank, note in enumerate(notes):
            groups.setdefault(note[what], []).append(rank)
        if len(groups) == 1:
            yield Finding(f"{what} of all ranks", OK, f"the same: {next(iter(groups))[:80]}")
            continue
        for value, ranks in groups.items():
            where = ", ".join(sorted({notes[rank]["host"] for rank in ranks}))
            told = _changed_keys(notes[0], notes[ranks[0]]) if what == "configuration" else ""
            remedy = f"make the {what} on all machines the same (a shared file system does)"
            yield Finding(f"{what} of all ranks", BLOCK, f"{value} on {where}{told}", remedy, tuple(ranks))
    yield from _machines(notes)


def _changed_keys(first: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the keys in which a configuration differs from rank 0's, with both values."""
    mine, theirs = _flat(json.loads(first["values"])), _flat(json.loads(other["values"]))
    keys = [key for key in dict.fromkeys([*mine, *theirs]) if mine.get(key) != theirs.get(key)]
    changed = [f"{key} {mine.get(key)!r} -> {theirs.get(key)!r}" for key in keys]
    return f" ({', '.join(changed[:5])})" if changed else ""


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _machines(notes: list[dict[str, Any]]) -> Iterator[Finding]:
    hosts: dict[str, int] = {}
    for note in notes:
        hosts[note["host"]] = hosts.get(note["host"], 0) + 1
    uneven = len(set(hosts.values())) > 1
    listed = ", ".join(f"{host} x {count}" for host, count in hosts.items())
    text = f"{len(hosts)} with {len(notes)} ranks" + (f": {listed}" if uneven or len(hosts) <= 8 else "")
    remedy = "give every machine as many ranks as GPUs; the slowest decides"
    yield Finding("machines", WARN if uneven else OK, text, remedy)
    kinds = {note["gpu"] for note in notes}
    if len(kinds) > 1:
        yield Finding("GPUs", WARN, f"of several kinds: {', '.join(sorted(kinds))}", "the slowest decides the speed")
    spread = max(note["time"] for note in notes) - min(note["time"] for note in notes)
    if spread > CLOCK_S:
        text = f"machines differ by {spread:.1f} s"
        yield Finding("clocks", WARN, text, "synchronise them (NTP), or times in logs cannot be compared")


def _notes(config: Config) -> dict[str, Any]:
    """Return what this rank has to say for the comparison."""
    versions = {**software_versions(), "python": platform.python_version()}
    text = json.dumps(to_dict(config), sort_keys=True)
    return {
        "host": socket.gethostname(),
        "configuration": hashlib.sha256(text.encode()).hexdigest()[:12],
        "values": text,
        "corpus": _corpus_ids(config),
        "software": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "time": time.time(),
    }


def _corpus_ids(config: Config) -> str:
    if not config.data.corpus:
        return "none"
    try:
        return " ".join(corpus.corpus_id[:12] for corpus in open_corpora(config.data, check_shards=False))
    except (FmriScaleError, ShardingError) as error:
        return str(error)


def _network(device: torch.device) -> Iterator[Finding]:
    """Yield the speed of an all-reduce over all ranks, and of each rank's link to the next."""
    size, world_size, rank = BYTES[device.type], dist.get_world_size(), dist.get_rank()
    small, large = torch.zeros(1, device=device), torch.zeros(size // 4, device=device)
    latency = _median_seconds(lambda: dist.all_reduce(small), device)
    seconds = _median_seconds(lambda: dist.all_reduce(large), device)
    link = _median_seconds(lambda: _pass_on(large, rank, world_size), device)
    links = gather(size / link)
    if rank == 0:
        bus = 2 * (world_size - 1) / world_size * size / seconds
        text = (
            f"{size >> 20} MB in {seconds * 1e3:.1f} ms: {bus / 1e9:.2f} GB/s per rank; latency {latency * 1e6:.0f} us"
        )
        yield Finding("all-reduce", OK, text)
        yield Finding("links", NOTE, f"{min(links) / 1e9:.2f} to {max(links) / 1e9:.2f} GB/s from rank to rank")
    if links[rank] * UNEVEN < statistics.median(links):
        text = (
            f"{socket.gethostname()}: {links[rank] / 1e9:.2f} GB/s, the median is {statistics.median(links) / 1e9:.2f}"
        )
        remedy = "look at this machine's and the next one's network card, cable and NCCL_DEBUG=INFO output"
        yield Finding("links", WARN, text, remedy)


def _pass_on(block: torch.Tensor, rank: int, world_size: int) -> None:
    """Send a block to the next rank and receive one from the one before."""
    received = torch.empty_like(block)
    operations = [
        dist.P2POp(dist.isend, block, (rank + 1) % world_size),
        dist.P2POp(dist.irecv, received, (rank - 1) % world_size),
    ]
    for request in dist.batch_isend_irecv(operations):
        request.wait()


def _median_seconds(call: Callable[[], Any], device: torch.device) -> float:
    call()  # connections are made at the first call
    times = []
    for _ in range(REPEATS):
        dist.barrier()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
