"""Which rank holds the others up: each rank's own time in a step, without waiting for the others.

Steps of all ranks end together, so their durations say nothing. A rank's own time is that of reading, copying and
computing (training/phases.py); reductions, in which it waits, are left out. With ZeRO 3 waiting is a part of the
forward and backward passes, and a slow rank shows less clearly.
"""

import socket
import statistics
from dataclasses import dataclass

from fmri_scale.checkpoint.collective import gather
from fmri_scale.log import get_logger

log = get_logger(__name__)

LEAST_S = 0.005
"Seconds of a step below which ratios are noise."


@dataclass(frozen=True)
class Slowest:
    """The slowest rank: its number, its host, its own time of a step, and the ratio to the median of all ranks."""

    rank: int
    host: str
    own_s: float
    ratio: float


def compare(own_s: float) -> Slowest:
    """Return the slowest rank by own time of a step; every rank calls it."""
    everyone = gather((own_s, socket.gethostname()))
    return slowest([seconds for seconds, _ in everyone], [host for _, host in everyone])


def slowest(own_s: list[float], hosts: list[str]) -> Slowest:
    """Return the slowest of all ranks, whose own times and hosts are given in their order."""
    rank = max(range(len(own_s)), key=own_s.__getitem__)
    others = own_s[:rank] + own_s[rank + 1 :] or own_s
    return Slowest(rank, hosts[rank], own_s[rank], own_s[rank] / max(statistics.median(others), LEAST_S))


def warn(found: Slowest, limit: float, step: int) -> bool:
    """Name a rank that takes more than `limit` times as long as the others; return whether it does."""
    if not limit or found.ratio <= limit or found.own_s <= LEAST_S:
        return False
    log.warning(
        "step %d: rank %d on %s needs %.2f s of its own for a step, %.1f times the median of the others; look at its "
        "device's clock, its readers, and what else runs there",
        *(step, found.rank, found.host, found.own_s, found.ratio),
    )
    return True
