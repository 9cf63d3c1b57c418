"""The engine of many machines: a Dask cluster whose nodes see the same folders as this one.

In: units. Out: their shards. A Dask task has its unit made in a child process of the Dask worker (as a local worker
does), so a poisoned run ends neither the worker nor its neighbours; when a whole Dask worker or its node is lost, the
unit is made elsewhere.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sharding.engine.unit import Unit
from sharding.engine.worker import Worker
from sharding.errors import CorpusError, InputError
from sharding.shard import Progress

MAX_LOST = 10
"Dask workers that may be lost under one unit before the cluster is taken for broken."

SCHEDULERS = "local, dask (a cluster of this machine), ADDRESS (tcp://HOST:8786), FILE.json of a scheduler, slurm"

CONNECT_S = "60s"


class DaskEngine:
    """Makes units on a Dask cluster.

    Parameters
    ----------
    scheduler
        See `connect`.
    workers
        Workers or jobs to ask for, where the cluster is ours to start.

    Raises
    ------
    InputError
        What is given can be no cluster, or a library is not installed. Whether it answers is seen when it is needed.
    """

    def __init__(self, scheduler: str, workers: int | None) -> None:
        # What Dask says of workers that come and go is not the user's to mend; read when Dask is first imported.
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")
        try:
            import distributed
        except ImportError as error:
            raise InputError(
                f"--scheduler {scheduler}: needs Dask, which is not installed; pip install 'fmri-scale[cluster]'"
            ) from error
        _check(scheduler, workers)
        self._dask, self._scheduler, self._workers = distributed, scheduler, workers

    def run(self, units: Sequence[Unit], progress: Progress) -> None:
        """Make all units; see `Engine`."""
        if not units:
            return
        topic = f"fmri-shards-{units[0].start}"
        with ExitStack() as stack:
            client = connect(self._scheduler, self._workers, stack)
            client.subscribe_topic(topic, lambda event: progress(event[1]))
            lost: dict[str, int] = {}
            futures = {self._submit(client, unit, topic, 0): unit for unit in units}
            stack.callback(lambda: client.cancel(list(futures)))
            arriving = self._dask.as_completed(list(futures))
            for future in arriving:
                unit = futures[future]
                error = future.exception()
                if isinstance(error, self._dask.KilledWorker):
                    lost[unit.name] = lost.get(unit.name, 0) + 1
                    if lost[unit.name] >= MAX_LOST:
                        raise CorpusError(f"{unit.out}: shard {unit.name}: {lost[unit.name]} Dask workers were lost")
                    again = self._submit(client, unit, topic, lost[unit.name])
                    futures[again] = unit
                    arriving.add(again)
                elif error is not None:
                    raise error
            client.unsubscribe_topic(topic)

    @staticmethod
    def _submit(client: Any, unit: Unit, topic: str, attempt: int) -> Any:
        key = f"{unit.name}-{unit.start}-{attempt}"
        return client.submit(_make_on_worker, unit, str(Path.cwd()), topic, key=key, pure=False)


def connect(scheduler: str, workers: int | None, stack: ExitStack) -> Any:
    """Return a client of a Dask cluster; the stack closes it, and what was started for it.

    Parameters
    ----------
    scheduler
        "dask": a cluster of `workers` processes on this machine, for trials. tcp://, tls:// or dask://HOST:PORT, or
        FILE.json that a scheduler wrote: a cluster that is there. "slurm": `workers` jobs through dask-jobqueue, as
        its own configuration says (~/.config/dask/jobqueue.yaml).

    Raises
    ------
    InputError
        There is no such cluster, or it does not answer.
    """
    from distributed import Client, LocalCluster

    try:
        if scheduler.endswith(".json"):
            return stack.enter_context(Client(scheduler_file=scheduler, timeout=CONNECT_S))
        if "://" in scheduler:
            return stack.enter_context(Client(scheduler.replace("dask://", "tcp://"), timeout=CONNECT_S))
        if scheduler == "slurm":
            from dask_jobqueue import SLURMCluster

            cluster: Any = SLURMCluster()
            cluster.scale(jobs=workers)
        else:
            cluster = LocalCluster(
                n_workers=workers or os.cpu_count() or 1, threads_per_worker=1, dashboard_address=None
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--scheduler {scheduler}: no cluster there ({' '.join(str(error).split())})") from error
    return stack.enter_context(Client(stack.enter_context(cluster)))


def _check(scheduler: str, workers: int | None) -> None:
    """Refuse what can be no cluster, before anything is planned or written."""
    if scheduler == "slurm":
        _check_slurm(workers)
    elif scheduler.endswith(".json"):
        if not Path(scheduler).is_file():
            raise InputError(
                f"--scheduler {scheduler}: no such file; a Dask scheduler writes it (dask scheduler --scheduler-file)"
            )
    elif scheduler != "dask" and "://" not in scheduler:
        raise InputError(f"--scheduler is {scheduler!r}; expected one of: {SCHEDULERS}")


def _check_slurm(workers: int | None) -> None:
    try:
        import dask_jobqueue  # noqa: F401 - brings its settings with it
    except ImportError as error:
        raise InputError("--scheduler slurm: needs dask-jobqueue; pip install 'fmri-scale[cluster]'") from error
    import dask

    if not workers:
        raise InputError("--scheduler slurm: say how many jobs with --workers N")
    if not (dask.config.get("jobqueue.slurm.cores") and dask.config.get("jobqueue.slurm.memory")):
        raise InputError(
            "--scheduler slurm: ~/.config/dask/jobqueue.yaml says no cores or memory of a job; launch/build_slurm.sh "
            "shows one"
        )


def _make_on_worker(unit: Unit, folder: str, topic: str) -> None:
    """Make a unit, on a Dask worker; `folder`: where relative names of files begin."""
    from distributed import get_worker

    dask_worker = get_worker()
    with Worker(folder) as worker:
        worker.make(unit, lambda frames: dask_worker.log_event(topic, frames))
