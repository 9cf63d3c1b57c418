"""Who makes the shards: this process, processes of this machine, or a Dask cluster. The same code, the same bytes.

In: work units (`unit.Unit`), a shard each. Out: whole shards with their records, in whatever order. An engine starts a
unit again elsewhere when its process dies, and leaves out a run that ends its process again and again, so that neither
a poisoned file nor a lost node stops a build. It decides nothing about the bytes.
"""

from collections.abc import Sequence
from typing import Protocol

from sharding.engine.unit import Unit
from sharding.errors import InputError
from sharding.shard import Progress


class Engine(Protocol):
    """Makes units."""

    def run(self, units: Sequence[Unit], progress: Progress) -> None:
        """Make all units; return when each has its record.

        Raises
        ------
        CorpusError, OSError
            A shard cannot be made or written. Then, and on any signal, what is under way is given up; shards that
            are whole stay.
        """


def engine_for(scheduler: str, workers: int | None) -> Engine:
    """Return the engine that the command line means.

    Parameters
    ----------
    scheduler
        "local", or where a Dask cluster is: see `cluster.connect`.
    workers
        Processes ("local"), or jobs that a cluster is asked for; 0 with "local" works in this very process; None
        leaves the number to the engine.

    Raises
    ------
    InputError
        The number makes no sense, or no library for the scheduler is installed.
    """
    if workers is not None and workers < 0:
        raise InputError(f"--workers is {workers}; expected 0 or more")
    if scheduler != "local":
        from sharding.engine.cluster import DaskEngine  # here, because dask is an extra

        return DaskEngine(scheduler, workers)
    from sharding.engine.local import InProcess, LocalProcesses

    return InProcess() if workers == 0 else LocalProcesses(workers)
