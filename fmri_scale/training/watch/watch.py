"""All watches of one rank, and when each is asked."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fmri_scale.config import GuardConfig
from fmri_scale.log import get_logger
from fmri_scale.training.watch import divergence, stragglers
from fmri_scale.training.watch.hang import HangWatch
from fmri_scale.training.watch.job_end import JobEnd, end_time
from fmri_scale.training.watch.spikes import LossSpikes

log = get_logger(__name__)


class Watch:
    """Looks after one rank.

    Parameters
    ----------
    module : whose weights the ranks compare.
    state : what a checkpoint kept of the watches.
    tell : writes a message into the run's status before a hang ends the process.
    """

    def __init__(
        self,
        config: GuardConfig,
        run_dir: Path,
        rank: int,
        world_size: int,
        module: nn.Module,
        state: dict[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        self._config, self._module, self._world_size = config, module, world_size
        self._spikes = LossSpikes(config.spike_sd, config.spike_window, state)
        (run_dir / "logs").mkdir(exist_ok=True)
        self._hang = HangWatch(config.hang_s, run_dir / "logs" / f"stacks_rank_{rank}.txt", tell)
        # one rank's word is enough to stop all, and a thousand should not ask the scheduler
        self._end = JobEnd(end_time() if rank == 0 else None, config.end_margin_s)
        self._slowest: stragglers.Slowest | None = None
        self._step_s = 0.0

    def after_step(self, step: int, loss: float, step_s: float) -> None:
        """Take in a step; every rank calls it.

        Raises
        ------
        TrainingError : the ranks' weights differ.
        """
        self._hang.beat()
        self._step_s = step_s
        self._spikes.note(step, loss)
        every = self._config.hash_every
        if every and self._world_size > 1 and step % every == 0:
            divergence.check(self._module, step)

    def beat(self) -> None:
        """Say that something long, such as a validation, is getting on."""
        self._hang.beat()

    def compare(self, own_s: float, step: int) -> None:
        """Find the slowest rank by each one's own time of a step; every rank calls it."""
        if self._world_size > 1:
            self._slowest = stragglers.compare(own_s)
            stragglers.warn(self._slowest, self._config.straggler_ratio, step)

    def row(self) -> dict[str, float]:
        """Return numbers for the log."""
        slow = self._slowest
        found = {} if slow is None else {"slowest_rank": slow.rank, "slowest_ratio": slow.ratio}
        return {"loss_spikes": self._spikes.total, **found}

    def saved(self, seconds: float) -> None:
        """Note that something long has ended: a checkpoint that took some seconds, a picture (0)."""
        self._hang.beat()
        self._end.note_save(seconds)

    def request(self) -> int:
        """Return the signal that the job's end amounts to, 0 while there is time."""
        if not self._end.is_near(self._step_s):
            return 0
        log.warning("the job ends soon (guard.end_margin_s=%g): saving and stopping", self._config.end_margin_s)
        return signal.SIGUSR1

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self._spikes.state()

    @property
    def hung(self) -> str:
        """What is known of a hang that is about to end the run; empty without one."""
        return self._hang.message

    def close(self) -> None:
        """Watch no longer."""
        self._hang.close()
