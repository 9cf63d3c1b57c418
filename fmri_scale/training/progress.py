"""The live line of a run on rank 0: step, loss, learning rate, frames per second, time left.

On a terminal the line renews itself in place; elsewhere (a log file) a line is written at a bounded rate.
"""

import logging
import sys
import time
from typing import TextIO

_QUIET_S = 10.0
"Least seconds between lines that do not go to a terminal."


class Progress:
    """Shows how a run is getting on."""

    def __init__(self, steps: int, done: int, stream: TextIO = sys.stderr, shown: bool = True) -> None:
        self.steps = steps
        self.shown = shown
        self._stream = stream
        self._live = stream.isatty()
        self._start = time.monotonic()
        self._first = done
        self._last = -_QUIET_S
        self._width = 0

    def update(self, step: int, loss: float, lr: float, frames_per_s: float) -> None:
        """Show the state after `step` steps."""
        now = time.monotonic()
        if not self.shown or not (self._live or now - self._last >= _QUIET_S or step == self.steps):
            return
        self._last = now
        left = (self.steps - step) * (now - self._start) / max(1, step - self._first)
        line = f"step {step}/{self.steps}  loss {loss:.4f}  lr {lr:.2e}"
        line += f"  {frames_per_s:,.0f} frames/s  ETA {duration(left)}"
        self._stream.write(f"\r{line:<{self._width}}" if self._live else line + "\n")
        self._stream.flush()
        self._width = len(line)

    def share(self, handler: logging.Handler) -> None:
        """Let messages of a handler to the same terminal begin on a line of their own."""
        handler.addFilter(self._make_room)

    def _make_room(self, record: logging.LogRecord) -> bool:
        self.end()
        return True

    def end(self) -> None:
        """Leave the line, so that what follows starts on a new one."""
        if self.shown and self._live and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
