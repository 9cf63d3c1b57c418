"""Stopping on request: SIGTERM and SIGUSR1 (a scheduler takes the machine back) and SIGINT (Ctrl-C).

A handler only remembers the signal. The loop asks at every step boundary, all ranks agree, and a checkpoint is
written before the process leaves. A second SIGINT stops at once.
"""

import signal
from types import FrameType

REQUEUE = 75
"Exit code (EX_TEMPFAIL) that tells a scheduler or supervisor to start the run again."
INTERRUPTED = 130
"Exit code after Ctrl-C."


class StopRequest:
    """What the signals have asked for so far."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def listen(self) -> "StopRequest":
        """Install the handlers."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        # training/supervise starts launchers with these blocked; one that came in before now arrives here
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
        return self

    def release(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


def exit_code(signals: list[int]) -> int:
    """Return the exit code after a stop that the signals received by all ranks asked for.

    Any rank's SIGTERM or SIGUSR1 makes it a requeue; Ctrl-C alone does not.
    """
    return REQUEUE if any(s in (signal.SIGTERM, signal.SIGUSR1) for s in signals) else INTERRUPTED
