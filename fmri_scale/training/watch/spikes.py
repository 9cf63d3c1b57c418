"""Loss spikes: a loss far above those of the steps before it is told, counted and left alone.

The gradient is clipped and the moments recover by themselves in most cases; a run that does not recover shows a series
of spikes. The window of past losses is kept in checkpoints, so a resumed run judges as the unbroken one would.
"""

import math
import statistics
from collections import deque
from typing import Any

from fmri_scale.log import get_logger

log = get_logger(__name__)

FEWEST = 16
"Losses that must be known before one can be called a spike."


class LossSpikes:
    """Compares each loss with the `window` before it.

    Parameters
    ----------
    limit : standard deviations above the mean that make a spike; 0 looks for none.
    """

    def __init__(self, limit: float, window: int, state: dict[str, Any] | None = None) -> None:
        self._limit = limit
        self._past: deque[float] = deque((state or {}).get("losses", []), maxlen=window)
        self.total = int((state or {}).get("spikes", 0))

    def note(self, step: int, loss: float) -> bool:
        """Take in the loss of a step; return whether it is a spike. A spike does not enter the window."""
        if not self._limit or not math.isfinite(loss):
            return False
        if len(self._past) >= FEWEST:
            mean, spread = statistics.fmean(self._past), statistics.pstdev(self._past)
            if loss > mean + self._limit * max(spread, 1e-3 * abs(mean)):
                self.total += 1
                log.warning("step %d: loss %.4f is a spike (mean of %d steps: %.4f)", step, loss, len(self._past), mean)
                return True
        self._past.append(loss)
        return False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"losses": list(self._past), "spikes": self.total}
