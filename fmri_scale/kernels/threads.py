"""All cores for the CPU forms: a pool of workers that each run torch single-threaded on its own blocks.

The blocks of a scan are small (they live in a core's second-level cache), so handing every operation to OpenMP
costs more than it computes; whole blocks per worker scale. The number of workers is `torch.get_num_threads()`
of the caller, and results must not depend on it: a block writes its own slice and its own partial sums.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def run_blocks(work: Callable[[Iterator[range]], None], blocks: Iterable[range]) -> None:
    """Call `work` once a worker with one shared iterator of blocks, and wait.

    Parameters
    ----------
    work : callable
        Takes blocks from the iterator until it is empty; called without gradient tracking.
    blocks : iterable of range
        What there is to do; each block is taken by exactly one worker.
    """
    todo = list(blocks)
    workers = min(torch.get_num_threads(), len(todo))
    shared = _Shared(todo)
    inference = torch.is_inference_mode_enabled()
    if workers <= 1:
        _quietly(work, shared, inference)
        return
    pool = _pool(torch.get_num_threads(), os.getpid())
    for done in [pool.submit(_quietly, work, shared, inference) for _ in range(workers)]:
        done.result()


def blocks_of(total: int, size: int) -> list[range]:
    """Cut `range(total)` into consecutive pieces of at most `size`."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


class _Shared:
    """An iterator that several threads may advance."""

    def __init__(self, todo: list[range]) -> None:
        self._todo = iter(todo)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[range]:
        return self

    def __next__(self) -> range:
        with self._lock:
            return next(self._todo)


def _quietly(work: Callable[[Iterator[range]], None], shared: _Shared, inference: bool) -> None:
    # gradient and inference mode belong to a thread; a worker starts with its own
    with torch.inference_mode(inference), torch.no_grad():
        work(shared)


@functools.lru_cache(maxsize=4)
def _pool(threads: int, pid: int) -> ThreadPoolExecutor:
    """One pool per size and process (`pid`: threads do not survive a fork)."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="kernels", initializer=torch.set_num_threads, initargs=(1,))
    barrier = threading.Barrier(threads)
    for started in [pool.submit(barrier.wait) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)  # a worker's setting is its own, but it becomes the default of later threads
    return pool
