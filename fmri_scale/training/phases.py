"""Where a step's time goes: read, copy, forward, backward, reduce, optimizer; without waiting for the device.

On a GPU a phase is the time between two events on the stream, read only when a row is logged, when they have long
happened; on a CPU it is time on the clock. `read` is waiting for clips, `copy` moving and decoding them and drawing the
mask, `reduce` DeepSpeed's exchange of gradients at the end of a step (of ZeRO 3, which exchanges all the time, only the
rest of it; the exchange itself lies in forward and backward).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PHASES = ("read", "copy", "forward", "backward", "reduce", "optimizer")
OWN = ("read", "copy", "forward", "backward")
"Phases in which a rank does not wait for others (with ZeRO 0 to 2)."

Mark = Any
"A point in time: seconds on a CPU, an event on a GPU."


class Phases:
    """Adds up the phases of one rank's steps between two rows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[tuple[str, Mark]] = []
        self._spans: list[tuple[str, Mark, Mark]] = []
        self._steps = 0
        self._own_s = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what happens inside to a phase; a phase inside another one is not counted to that."""
        if self._open:
            self._close()
        self._open.append((name, self._mark()))
        try:
            yield
        finally:
            self._close()
            self._open.pop()
            if self._open:
                self._open[-1] = (self._open[-1][0], self._mark())

    def watch_reduction(self, engine: Any) -> None:
        """Count the engine's exchange of gradients to `reduce`."""
        engine.allreduce_gradients = self._timed("reduce", engine.allreduce_gradients)

    def end_step(self) -> None:
        """Note that a step is over."""
        self._steps += 1

    def row(self) -> dict[str, float]:
        """Return the mean seconds of a step in each phase since the last row, `time_PHASE_s`, and begin anew."""
        seconds = dict.fromkeys(PHASES, 0.0)
        for name, begin, end in self._spans:
            seconds[name] += self._between(begin, end)
        steps = max(1, self._steps)
        self._own_s = sum(seconds[name] for name in OWN) / steps
        self._spans.clear()
        self._steps = 0
        return {f"time_{name}_s": value / steps for name, value in seconds.items()}

    @property
    def own_s(self) -> float:
        """A step's seconds in which this rank waited for no other, the mean of those in the last row."""
        return self._own_s

    def _close(self) -> None:
        name, begin = self._open[-1]
        self._spans.append((name, begin, self._mark()))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self(name):
                return call(*arguments, **options)

        return timed

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Mark, end: Mark) -> float:
        if self._device.type != "cuda":
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
