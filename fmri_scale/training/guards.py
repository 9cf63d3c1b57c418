"""What keeps bad numbers out of the weights, and what stops a run that makes nothing else.

A micro-batch with a non-finite loss gets a non-finite gradient (`poison`), whatever its own gradient is. The
gradient's global norm then decides, alike on every rank: ZeRO 1 to 3 skip the step themselves, ZeRO 0 is made to.
`BadSteps` counts, writes the clips down and stops the run.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmri_scale.errors import TrainingError
from fmri_scale.log import get_logger

log = get_logger(__name__)

BAD_STEPS = "bad_steps.jsonl"


def poison(loss: Tensor) -> Tensor:
    """Return the loss; where it is not finite, with a gradient of NaN, so that no rank takes the step.

    An infinite loss can have a finite gradient. No value is read on the host; a finite loss is unchanged to the bit.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


def apply_gradients(engine: Any, clip_grad: float) -> tuple[bool, float]:
    """Finish the optimizer step of a DeepSpeed engine; return whether weights moved, and the gradient's norm.

    Parameters
    ----------
    clip_grad : global norm above which gradients are scaled down; 0 for none.

    Notes
    -----
    DeepSpeed 0.19.8 checks for non-finite gradients with ZeRO 1 to 3 only: with ZeRO 0 it would write NaN into every
    weight and report a step (`test_nonfinite_input_skips_the_step`). There the norm is taken here and a bad
    gradient dropped: AdamW leaves parameters without a gradient, and their moments, as they are.
    """
    if engine.zero_optimization_stage():
        engine.step()
        norm = float(engine.get_global_grad_norm())
        return bool(engine.was_step_applied()) and math.isfinite(norm), norm
    norm = float(torch.nn.utils.clip_grad_norm_(engine.module.parameters(), clip_grad or math.inf))
    if not math.isfinite(norm):
        engine.zero_grad()
    engine.step()
    return math.isfinite(norm), norm


class BadSteps:
    """Counts skipped steps and ends the run after `limit` of them in a row."""

    def __init__(self, run_dir: Path, limit: int, in_a_row: int = 0, total: int = 0) -> None:
        self.file = run_dir / BAD_STEPS
        self.limit = limit
        self.in_a_row = in_a_row
        self.total = total

    def state(self) -> dict[str, int]:
        """Return the counts, for a checkpoint."""
        return {"in_a_row": self.in_a_row, "total": self.total}

    def good(self) -> None:
        """Note a step that was taken."""
        self.in_a_row = 0

    def bad(self, step: int, grad_norm: float, ranks: list[dict[str, Any]], writes: bool) -> None:
        """Note a skipped step.

        Parameters
        ----------
        step : number of the step, from 1.
        ranks : of each rank, `{"micro_batches": [{"loss": "0.5", "clips": ["KEY@START", ...]}, ...]}`.
        writes : whether this rank writes the file.

        Raises
        ------
        TrainingError : it is the `limit`-th in a row.
        """
        self.in_a_row += 1
        self.total += 1
        if writes:
            row = {"step": step, "grad_norm": repr(grad_norm), "ranks": ranks}
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        names = ", ".join(_suspects(ranks)[:4]) or "none by itself"
        log.warning("step %d skipped: loss or gradient not finite (%s); clips: %s", step, f"{grad_norm:g}", names)
        if self.in_a_row >= self.limit:
            raise TrainingError(
                f"{self.in_a_row} steps in a row (up to step {step}) had a loss or gradient that is not finite; their "
                f"clips are in {self.file}; look at the data, lower optim.lr, or raise engine.max_bad_steps"
            )


def _suspects(ranks: list[dict[str, Any]]) -> list[str]:
    """Return the clips of the micro-batches whose own loss was not finite."""
    batches = [batch for rank in ranks for batch in rank["micro_batches"]]
    return [clip for batch in batches if not math.isfinite(float(batch["loss"])) for clip in batch["clips"]]
