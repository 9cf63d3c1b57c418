"""A port for rank 0 to listen on: the same for the same job, free on this machine, outside the ephemeral range.

torch's default 29500 collides as soon as two runs share a machine, or one has left a rank behind.
"""

import socket
import zlib

from fmri_scale.errors import LaunchError

FIRST, COUNT = 20000, 12000
"Linux hands out ports from 32768 on to clients; those below are ours to choose."


def choose(job: str, tries: int = 64) -> int:
    """Return the first free port of the sequence that belongs to a job's name.

    Raises
    ------
    LaunchError : none of `tries` ports is free.
    """
    for attempt in range(tries):
        port = of(job, attempt)
        if is_free(port):
            return port
    raise LaunchError(f"no free port among {tries} between {FIRST} and {FIRST + COUNT}; end what listens there")


def of(job: str, attempt: int = 0) -> int:
    """Return a port that follows from a job's name alone."""
    return FIRST + (zlib.crc32(job.encode()) + attempt * 97) % COUNT


def is_free(port: int) -> bool:
    """Return True where a listening socket can be bound to the port on all interfaces."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
