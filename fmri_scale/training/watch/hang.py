"""A run that stands still is ended, with the stacks of all threads of every rank written down first.

Every rank watches itself: a rank that waits for another in a collective is as late as that one, so all of them write.
Two clocks: a thread of Python, which can say in status.json what happened, and, where a call holds Python's lock for
ever, the C library's (`faulthandler`), which writes the stacks and ends the process a little later.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fmri_scale.log import get_logger

log = get_logger(__name__)

LOST = 1
"Exit code: start again."
GRACE_S = 10.0
"Seconds from the stacks to the end, so that the other ranks have written theirs too."


class HangWatch:
    """Ends this process when `beat` has not been called for `limit_s` seconds.

    Parameters
    ----------
    limit_s : 0 never ends it.
    stacks : file for the stacks.
    tell : called with a message before the end, and with an empty one if the run gets on after all; on rank 0 it
        writes the status.

    Attributes
    ----------
    message : what happened, once it has; what comes after it (a rank that is lost) is only its consequence. Empty
        again if the run gets on after all.
    """

    def __init__(self, limit_s: float, stacks: Path, tell: Callable[[str], None], grace_s: float = GRACE_S) -> None:
        self._limit_s, self._path, self._tell, self._grace_s = limit_s, stacks, tell, grace_s
        self._last, self._over = time.monotonic(), threading.Event()
        self.message, self._told = "", False
        if not limit_s:
            return
        self._file = stacks.open("a")
        self.beat()
        threading.Thread(target=self._watch, daemon=True, name="hang watch").start()

    def beat(self) -> None:
        """Say that the run is getting on; takes back what was told of a hang that has ended in time."""
        self._last = time.monotonic()
        if self._told:  # here and not in the watch's thread, which could write over the run's last word
            self._told, self.message = False, ""
            log.warning("the run gets on again and is not ended")
            self._tell("")
        if self._limit_s and not self._over.is_set():
            faulthandler.dump_traceback_later(self._limit_s + 3 * self._grace_s, exit=True, file=self._file)

    def close(self) -> None:
        """Watch no longer."""
        if self._limit_s and not self._over.is_set():
            self._over.set()
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            if not self._path.stat().st_size:
                self._path.unlink()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit_s / 4)):
            seen = self._last
            late = time.monotonic() - seen
            if late > self._limit_s:
                self._end(seen, late)

    def _end(self, seen: float, late: float) -> None:
        """Write the stacks and end the process, unless another beat than the last one `seen` comes meanwhile."""
        faulthandler.dump_traceback(self._file, all_threads=True)
        folder = self._path.parent
        self.message = f"no step for {late:.0f} s (guard.hang_s={self._limit_s:g}); stacks of all ranks are in {folder}"
        log.error("%s", self.message)
        self._tell(self.message)
        self._told = True
        if self._over.wait(self._grace_s):
            return
        if self._last == seen:
            os._exit(LOST)
