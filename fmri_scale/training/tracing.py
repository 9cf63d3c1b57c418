"""Traces of chosen steps: torch's profiler and the memory's history, for a range of steps or on a signal.

`log.profile_steps=[100,102]` traces these steps on rank 0; SIGUSR2 to any rank's process traces its next three.
Written below `profile/` of the run's folder: `steps_A_B_rank_K.json.gz` for Perfetto or chrome://tracing, `.txt` with
the dearest operations by time and by memory, and on a GPU `.pickle`, the allocations for
https://pytorch.org/memory_viz.
"""

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from fmri_scale.log import get_logger

log = get_logger(__name__)

FOLDER = "profile"
ON_SIGNAL = 3
"Steps traced after SIGUSR2."
MOST_EVENTS = 100_000
"Allocations that the memory's history keeps."


class Profiler:
    """Starts and ends traces at step boundaries.

    Parameters
    ----------
    steps : first and last step to trace on rank 0, or empty.
    """

    def __init__(self, run_dir: Path, steps: list[int], rank: int, device: torch.device) -> None:
        self._folder, self._rank, self._device = run_dir / FOLDER, rank, device
        self._range = (steps[0], steps[1]) if steps and rank == 0 else (0, 0)
        self._asked = False
        self._profile: Any = None
        self._before: Any = None
        # a thread other than the main one cannot listen
        with contextlib.suppress(ValueError):
            self._before = signal.signal(signal.SIGUSR2, self._ask)

    def before(self, step: int) -> None:
        """Begin a trace if it is due with this step (from 1)."""
        if self._asked and self._profile is None:
            self._range = (step, step + ON_SIGNAL - 1)
        self._asked = False
        if self._profile is None and self._range[0] <= step <= self._range[1]:
            self._range = (step, self._range[1])
            self._begin()

    def after(self, step: int) -> None:
        """End the trace if this step was its last."""
        if self._profile is not None and step >= self._range[1]:
            self._end(step)

    def close(self, step: int) -> None:
        """End a trace that is going on, and listen to the signal no longer."""
        if self._profile is not None:
            self._end(step)
        if self._before is not None:
            signal.signal(signal.SIGUSR2, self._before)
            self._before = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)
        self._profile = torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()

    def _end(self, step: int) -> None:
        profile, self._profile = self._profile, None
        profile.stop()
        self._folder.mkdir(exist_ok=True)
        name = self._folder / f"steps_{self._range[0]}_{step}_rank_{self._rank}"
        self._range = (0, 0)
        trace = name.with_suffix(".json.gz")
        aside = name.with_suffix(f".{os.getpid()}.json.gz")  # the exporter chooses the format by the name's end
        profile.export_chrome_trace(str(aside))
        os.replace(aside, trace)
        averages = profile.key_averages()
        unit = "cuda" if self._device.type == "cuda" else "cpu"
        tables = [averages.table(sort_by=f"self_{unit}_{key}", row_limit=30) for key in ("time_total", "memory_usage")]
        name.with_suffix(".txt").write_text("\n".join(tables))
        if self._device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(name.with_suffix(".pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
        log.info("traced steps: %s", trace)
