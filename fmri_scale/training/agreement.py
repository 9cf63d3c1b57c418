"""All ranks must have been started alike: one configuration, else they train different models and never notice."""

import socket

from fmri_scale.checkpoint.collective import gather
from fmri_scale.checkpoint.restore import differences
from fmri_scale.config import Config
from fmri_scale.errors import LaunchError

OWN = ("data.cache_dir", "engine.offload_dir", "log.level", "launch.env")
"Keys that may differ from machine to machine."


def require_same(config: Config) -> None:
    """Compare the configurations of all ranks; every rank calls it.

    Raises
    ------
    LaunchError : one differs from rank 0's; on every rank, naming the rank, its host and the keys.
    """
    everyone = gather((config, socket.gethostname()))
    first = everyone[0][0]
    for rank, (other, host) in enumerate(everyone):
        changed = [c for c in differences(first, other) if c[0] not in OWN]
        if changed:
            key, wanted, found = changed[0]
            more = f" and {len(changed) - 1} more keys" if len(changed) > 1 else ""
            raise LaunchError(
                f"rank {rank} on {host} was started with {key}={found!r}, rank 0 with {wanted!r}{more}: give all ranks "
                "the same files and overrides"
            )
