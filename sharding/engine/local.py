"""The engines of one machine: this process, or processes of its own.

In: units. Out: their shards. Each worker takes the next unit when it has made one.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Sequence

from sharding.engine.unit import Unit, make_unit
from sharding.engine.worker import Worker
from sharding.shard import Progress

WORKER_BYTES = 2**30
"Memory to have for each worker: they need less, but so does everybody else on the machine."


class InProcess:
    """Makes units here, one after another; a run that ends the process ends the build."""

    def run(self, units: Sequence[Unit], progress: Progress) -> None:
        """Make all units; see `Engine`."""
        for unit in units:
            make_unit(unit, progress)


class LocalProcesses:
    """Makes units in processes of this machine.

    Parameters
    ----------
    workers
        Processes; None: one a core that this process may use, as far as memory reaches.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or default_workers()

    def run(self, units: Sequence[Unit], progress: Progress) -> None:
        """Make all units; see `Engine`."""
        waiting: queue.SimpleQueue[Unit] = queue.SimpleQueue()
        for unit in units:
            waiting.put(unit)
        told: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        workers = [Worker() for _ in range(min(self.workers, len(units)))]
        threads = [threading.Thread(target=_serve, args=(worker, waiting, told)) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            _watch(told, len(threads), progress)
        finally:
            for worker in workers:
                worker.close()
            for thread in threads:
                thread.join()


def default_workers() -> int:
    """Processes that the machine has cores and memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = cores * WORKER_BYTES
    with contextlib.suppress(OSError, ValueError):  # no such figure on this system
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores, free // WORKER_BYTES))


def _serve(
    worker: Worker, waiting: "queue.SimpleQueue[Unit]", told: "queue.SimpleQueue[int | Exception | None]"
) -> None:
    try:
        while True:
            worker.make(waiting.get_nowait(), told.put)
    except queue.Empty:
        told.put(None)
    except Exception as error:  # carried to the main thread, which raises it
        told.put(error)


def _watch(told: "queue.SimpleQueue[int | Exception | None]", threads: int, progress: Progress) -> None:
    while threads:
        message = told.get()
        if isinstance(message, Exception):
            raise message
        if message is None:
            threads -= 1
        else:
            progress(message)
