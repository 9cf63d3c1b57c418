"""One optimizer step, from top to bottom: fetch, forward, backward, clip, check, step, compare notes."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fmri_scale.config import OptimConfig
from fmri_scale.data import ClipBatch
from fmri_scale.models.strd import drop_rates
from fmri_scale.training.dist import exchange
from fmri_scale.training.guards import apply_gradients, poison
from fmri_scale.training.phases import Phases
from fmri_scale.training.schedule import learning_rate


@dataclass(frozen=True)
class StepResult:
    """What came of a step; equal on every rank but for `micro_batches`.

    Attributes
    ----------
    loss : mean over the global batch.
    grad_norm : global norm before clipping.
    applied : False where a non-finite loss or gradient made every rank skip the step.
    seconds, wait_s : duration, and the longest any rank waited for data.
    masked_fraction, masked_fraction_brain : hidden share of all tokens, and of those that hold brain.
    drop_rates : shares of tokens that redundancy dropout dropped, by redundancy; empty where it is off.
    terms : the terms of a loss that has several, unweighted, by their names in the metrics (`loss_...`).
    signals : signal numbers the ranks have received, 0 for none.
    bad_clips : clips that could not be read and were replaced, of all ranks since they started.
    micro_batches : this rank's losses and clips, to be written down if they were bad.
    """

    loss: float
    grad_norm: float
    lr: float
    applied: bool
    seconds: float
    wait_s: float
    masked_fraction: float
    masked_fraction_brain: float
    drop_rates: dict[str, float]
    terms: dict[str, float]
    signals: list[int]
    bad_clips: int
    micro_batches: list[dict[str, Any]]


def train_step(
    engine: Any,
    stream: Iterator[ClipBatch],
    prepare: Callable[[ClipBatch], tuple],
    optim: OptimConfig,
    step: int,
    phases: Phases,
    signal_received: Callable[[], int],
    bad_clips: Callable[[], int] = lambda: 0,
) -> StepResult:
    """Take the step after `step` steps.

    Parameters
    ----------
    engine : DeepSpeed's, whose accumulation makes up the global batch.
    stream : this rank's micro-batches.
    prepare : turns a batch into the arguments of the model on the device.
    phases : counts where the time goes.
    signal_received, bad_clips : asked at the end of the step, so that all ranks learn of them together.
    """
    begin, wait_s = time.perf_counter(), 0.0
    lr = learning_rate(step, optim)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

    last = engine.gradient_accumulation_steps() - 1
    losses, hidden, dropped, terms, clips = [], [], [], [], []
    for micro in range(last + 1):
        asked = time.perf_counter()
        with phases("read"):
            batch = next(stream)
        wait_s += time.perf_counter() - asked
        clips.append([f"{key}@{start}" for key, start in zip(batch.keys, batch.start_frame.tolist(), strict=True)])
        with phases("copy"):
            arguments = prepare(batch)
        with phases("forward"):
            output = engine(*arguments)
        with phases("backward"):
            engine.backward(poison(output.loss))
        losses.append(output.loss.detach())
        hidden.append(_fractions(output.metrics))
        dropped += [output.metrics["strd_counts"].flatten()] if "strd_counts" in output.metrics else []
        names = [name for name in output.metrics if name.startswith("loss_")]
        terms += [torch.stack([output.metrics[name] for name in names])] if names else []
        if micro < last:
            engine.step()  # counts the micro-step, changes nothing
    with phases("optimizer"):
        applied, grad_norm = apply_gradients(engine, optim.clip_grad)
    phases.end_step()

    micro_losses = torch.stack(losses).tolist()
    fractions = torch.stack(hidden).mean(0).tolist()
    notes = [math.fsum(micro_losses) / len(micro_losses), *fractions, wait_s, float(signal_received()), bad_clips()]
    notes += torch.stack(terms).mean(0).tolist() if terms else []
    notes += torch.stack(dropped).sum(0).tolist() if dropped else []
    loss, masked, masked_brain, waits, signals, bad, *more = zip(*exchange(notes, engine.device), strict=True)
    parts, counts = more[: len(names)], more[len(names) :]
    return StepResult(
        loss=math.fsum(loss) / len(loss),
        grad_norm=grad_norm,
        lr=lr,
        applied=applied,
        seconds=time.perf_counter() - begin,
        wait_s=max(waits),
        masked_fraction=math.fsum(masked) / len(masked),
        masked_fraction_brain=math.fsum(masked_brain) / len(masked_brain),
        drop_rates=drop_rates([math.fsum(ranks) for ranks in counts]) if counts else {},
        terms={name: math.fsum(ranks) / len(ranks) for name, ranks in zip(names, parts, strict=True)},
        signals=[int(number) for number in signals],
        bad_clips=int(sum(bad)),
        micro_batches=[{"loss": repr(x), "clips": names} for x, names in zip(micro_losses, clips, strict=True)],
    )


def _fractions(metrics: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the hidden shares of a micro-batch; the second is NaN where no brain is known."""
    masked = metrics["masked_fraction"].detach()
    return torch.stack([masked, metrics.get("masked_fraction_brain", torch.full_like(masked, math.nan))])
