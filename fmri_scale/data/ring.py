"""Memory for micro-batches that is filled again and again: slots of one mapping, lent to batches and taken back.

Fresh memory costs a page fault per 4 KiB, which on the way of a few GB/s is most of the work; so the ring is touched
once, at the start. A slot is lent with `lend`, and comes back by itself when the last array or tensor over it is gone.
The mapping is a memfd: it has no name, so nothing is left behind when processes die.
"""

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

from fmri_scale.data.request import SlotLayout, SlotViews
from fmri_scale.errors import DataError


class Loan:
    """A slot in use. `busy`, where set, tells whether a device still copies from it after the last tensor is gone."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.busy: Callable[[], bool] | None = None


class Ring:
    """Slots in shared memory: a file without a name, `fd`, that readers inherit before it has its size."""

    layout: SlotLayout

    def __init__(self) -> None:
        self.fd = os.memfd_create("fmri_scale_ring", os.MFD_CLOEXEC)

    def allocate(self, layout: SlotLayout, num_slots: int) -> None:
        """Make room for `num_slots` slots of `layout`; DataError where the memory cannot be had."""
        self.layout = layout
        size = layout.slot_bytes * num_slots
        try:
            os.posix_fallocate(self.fd, 0, size)
        except OSError as error:
            raise DataError(
                f"no memory for a ring of {num_slots} micro-batches, {size / 1e6:.0f} MB ({error.strerror}); "
                "lower data.prefetch_mb or optim.micro_batch"
            ) from error
        self._map = mmap.mmap(self.fd, size)
        self._free = deque(range(num_slots))
        self._cooling: deque[Loan] = deque()

    @property
    def num_free(self) -> int:
        """Slots that can be taken now."""
        for _ in range(len(self._cooling)):
            loan = self._cooling.popleft()
            if loan.busy is not None and loan.busy():
                self._cooling.append(loan)
            else:
                self._free.append(loan.slot)
        return len(self._free)

    def take(self) -> int:
        """Take a free slot to fill it."""
        return self._free.popleft()

    def put_back(self, slot: int) -> None:
        """Return a slot that was taken and not lent."""
        self._free.append(slot)

    def memory(self, slot: int) -> np.ndarray:
        """Return a slot's bytes, uint8 [slot_bytes]."""
        size = self.layout.slot_bytes
        return np.frombuffer(self._map, np.uint8, size, slot * size)

    def lend(self, slot: int, count: int) -> tuple[SlotViews, Loan]:
        """Return arrays over the first `count` clips of a slot; the slot comes back when they are gone."""
        loan = Loan(slot)
        memory = self.memory(slot)
        # Every array and tensor made of `memory` holds on to it, numpy by .base and torch by the storage.
        weakref.finalize(memory, self._cooling.append, loan).atexit = False
        return self.layout.views(memory, count), loan

    @property
    def address(self) -> tuple[int, int]:
        """Where the memory begins, and its bytes: what a device needs to copy from it directly."""
        whole = np.frombuffer(self._map, np.uint8)
        return whole.ctypes.data, whole.nbytes

    def close(self) -> None:
        """Let go of the file; the memory goes with the last batch over it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
