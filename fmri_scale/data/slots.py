"""Have clips read into slots of the ring, by reader processes or in this process, and lend the filled slots out.

In: lists of clips to read together. Out: arrays over a slot that is theirs until nothing refers to them any more.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fmri_scale.config import DataConfig
from fmri_scale.data.inline import InlineReader
from fmri_scale.data.readers import ReaderPool
from fmri_scale.data.reading import ClipReader
from fmri_scale.data.request import ClipRequest, Job, SlotLayout, SlotViews
from fmri_scale.data.ring import Loan, Ring
from fmri_scale.data.sources import make_source

MOST_SLOTS = 64
"Micro-batches read ahead at most, however small they are."

REMOTE_CLIPS = 8
"Clips that one reader process fetches from a remote store at a time."


class Slots:
    """The ring of a rank and those who fill it; made first, so that readers start, and opened when all is known.

    Parameters
    ----------
    config
        num_readers, prefetch_mb, verify, retries and stall_timeout_s are used.
    where
        Says in words what a job reads.
    """

    layout: SlotLayout
    _inline: InlineReader | None = None

    def __init__(self, config: DataConfig, where: Callable[[Job], str]) -> None:
        self._config = config
        self.ring = Ring()
        self._private: dict[int, np.ndarray] = {}
        self._jobs = 0
        self._pool: ReaderPool | None = None
        if config.num_readers:
            self._pool = ReaderPool(self.ring, config.num_readers, config.stall_timeout_s, where)

    def open(self, layout: SlotLayout, spec: dict[str, Any]) -> None:
        """Make room for slots of a layout, to be filled from a source (see corpora.source_spec)."""
        config, self.layout = self._config, layout
        self.ring.allocate(layout, _num_slots(config, layout))
        reader = ClipReader(make_source(spec), layout, config.verify, config.retries)
        self._inline = InlineReader(reader, lambda slot: layout.views(self._memory(slot), layout.batch))
        if self._pool is not None:
            threads = REMOTE_CLIPS if spec["kind"] == "remote" else 1
            self._pool.begin({"source": spec, "verify": config.verify, "retries": config.retries, "threads": threads})

    @property
    def has_room(self) -> bool:
        """Whether the ring has a free slot."""
        return self.ring.num_free > 0

    @property
    def restarts(self) -> int:
        """Reader processes that were replaced."""
        return self._pool.restarts if self._pool else 0

    def submit(self, clips: list[tuple[int, ClipRequest]]) -> Job:
        """Have clips read into a slot; into memory of its own where all slots are held by batches in use."""
        if self.has_room:
            return self.submit_to(self.ring.take(), clips)
        slot = -1 - self._jobs
        self._private[slot] = np.empty(self.layout.slot_bytes, np.uint8)
        return self.submit_to(slot, clips)

    def submit_to(self, slot: int, clips: list[tuple[int, ClipRequest]]) -> Job:
        """Have clips read into a slot that a job before has; others in it stay."""
        job = Job(self._jobs, slot, clips, {})
        self._jobs += 1
        if self._pool is not None and slot >= 0:
            self._pool.submit(job)
        return job

    def wait(self, job: Job) -> None:
        """Return when a job is read; its `faults` name the places that could not be filled."""
        if self._pool is not None and job.slot >= 0:
            self._pool.wait(job)
        elif not job.done:
            assert self._inline is not None, "opened"
            self._inline.read(job)

    def lend(self, job: Job, count: int) -> tuple[SlotViews, Loan]:
        """Return arrays over the first `count` clips of a job's slot, and the loan that ends with them."""
        if job.slot >= 0:
            return self.ring.lend(job.slot, count)
        return self.layout.views(self._private.pop(job.slot), count), Loan(job.slot)

    def drop(self, job: Job) -> None:
        """Wait for a job that nobody wants any more, and take its slot back."""
        self.wait(job)
        if job.slot >= 0:
            self.ring.put_back(job.slot)
        else:
            del self._private[job.slot]

    def close(self) -> None:
        """End the readers; let go of shards and memory."""
        if self._pool is not None:
            self._pool.close()
        if self._inline is not None:
            self._inline.close()
        self.ring.close()

    def _memory(self, slot: int) -> np.ndarray:
        return self._private[slot] if slot < 0 else self.ring.memory(slot)


def _num_slots(config: DataConfig, layout: SlotLayout) -> int:
    """Return how many micro-batches fit the memory for reading ahead; two where nothing reads ahead."""
    fit = int(config.prefetch_mb * 1e6) // layout.slot_bytes
    return max(2, min(fit, MOST_SLOTS)) if config.num_readers else 2
