"""The training loop: one process, plain torch, the same numbers for the same seed, resumable after every epoch.

In: an adapted model, the clips of training units and, where training is to stop by itself, those of validation units.
Out: a folder with the parameters of the best epoch (files.py). The loss of a step is the weighted mean over its clips,
summed over micro-batches; clips of a unit share the weight of one. The rate rises over the first twentieth of the
steps and falls as a cosine to zero at the last epoch that is allowed. What validation measures is what chooses the
settings of probes: Brier score or squared error of units after their clips' scores are averaged.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fmri_scale.errors import TrainingError
from fmri_scale.evaluation.probes import Problem, unit_losses, unit_means
from fmri_scale.evaluation.probes.target import TrainingTarget, row_weights
from fmri_scale.evaluation.sealed import Part, refuse_test
from fmri_scale.evaluation.tuning.adapt import TunedModel, optimizer_groups
from fmri_scale.evaluation.tuning.clips import ClipRows
from fmri_scale.evaluation.tuning.files import read_state, save_result, save_state
from fmri_scale.evaluation.tuning.settings import TuningConfig
from fmri_scale.log import get_logger
from fmri_scale.models import clip_keys
from fmri_scale.models.init import generator
from fmri_scale.release import Pretrained

WARM_SHARE = 0.05
"Share of the steps in which the rate rises."
CLIP_GRADIENT = 1.0
"Largest norm of a step's gradient."
STATISTICS_CLIPS = 256
"Most training clips by which features are standardised."

_log = get_logger(__name__)


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes
    ----------
    name
        For the log.
    lr
        Peak rate of what is tuned.
    epochs
        Most epochs, or, without validation, how many.
    val
        Rows that say when to stop; None trains all epochs.
    facts
        Written down with the result; `key` says whether a state in the folder is of this training.
    """

    name: str
    config: TuningConfig
    problem: Problem
    target: TrainingTarget
    lr: float
    epochs: int
    seed: int
    balanced: bool
    train: Part
    val: Part | None
    facts: dict[str, Any]


@dataclass
class Course:
    """How a training went so far: losses by epoch, and the best epoch (counted from 1; 0: none yet)."""

    key: str
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = math.inf
    diverged: bool = False

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.history)

    def over(self, plan: Plan) -> bool:
        """Whether nothing is left to do."""
        stalled = plan.val is not None and self.epochs - self.best_epoch >= plan.config.patience
        return self.diverged or self.epochs >= plan.epochs or (self.epochs > 0 and stalled)


def train(model: Pretrained, tuned: TunedModel, plan: Plan, folder: Path) -> Course:
    """Train, and leave the result in a folder; goes on from a state that is there.

    Raises
    ------
    TrainingError
        The loss is not finite and there is no epoch to fall back on.
    """
    for part in (plan.train, plan.val):
        if part is not None:
            refuse_test(part)
    optimizer = torch.optim.AdamW(optimizer_groups(tuned, plan.lr, plan.config), lr=plan.lr)
    course, best = _begin(model, tuned, optimizer, plan, folder)
    while not course.over(plan):
        loss = _run_epoch(model, tuned, optimizer, plan, course.epochs)
        if not math.isfinite(loss):
            _log.warning("%s: the loss is not finite in epoch %d: stopped", plan.name, course.epochs + 1)
            course.diverged = True
            break
        best = _note(model, tuned, plan, course, loss, best)
        _save(tuned, optimizer, course, best, folder)
    if not best or (course.diverged and plan.val is None):
        raise TrainingError(f"{plan.name}: the loss is not finite with a rate of {plan.lr:g}; give a smaller one")
    save_result(folder, best, {**plan.facts, "epochs": course.best_epoch, "history": course.history})
    return course


def predict(model: Pretrained, tuned: TunedModel, inputs: ClipRows, config: TuningConfig) -> Tensor:
    """Outputs of clips, float32 `[R, K]` on the CPU."""
    tuned.eval()
    with torch.no_grad():
        parts = [_forward(model, tuned, inputs, rows, config).float().cpu() for rows in _micro(len(inputs), config)]
    return torch.cat(parts)


def validation(model: Pretrained, tuned: TunedModel, part: Part, plan: Plan) -> float:
    """Mean loss of the units of a part."""
    _, mean = unit_means(plan.target.scores(predict(model, tuned, part.inputs, plan.config)), part.unit)
    return float(unit_losses(part, mean, plan.problem).mean())


def _begin(
    model: Pretrained, tuned: TunedModel, optimizer: torch.optim.Optimizer, plan: Plan, folder: Path
) -> tuple[Course, dict[str, Tensor]]:
    """Put back a state of this training, or standardise the features for a new one."""
    found = read_state(folder)
    if found is not None and found[1]["key"] != plan.facts["key"]:
        _log.info("%s: %s is of other settings or data: training starts anew", plan.name, folder)
        found = None
    if found is None:
        _standardise(model, tuned, plan)
        return Course(plan.facts["key"]), {}
    tensors, facts = found
    tuned.take(_part(tensors, "now"))
    moments = [_part(tensors, name) for name in ("exp_avg", "exp_avg_sq", "step")]
    for name, parameter in tuned.trained().items():
        average, square, step = (found[name] for found in moments)
        device = parameter.device
        optimizer.state[parameter] = {
            "step": step,
            "exp_avg": average.to(device),
            "exp_avg_sq": square.to(device),
        }
    course = Course(**facts)
    _log.info("%s: goes on after epoch %d", plan.name, course.epochs)
    return course, _part(tensors, "best")


def _standardise(model: Pretrained, tuned: TunedModel, plan: Plan) -> None:
    """Set mean and scale of the features, over training clips alone and before anything is trained."""
    inputs, config = plan.train.inputs, plan.config
    rows = _order(len(inputs), plan.seed, "statistics")[:STATISTICS_CLIPS]
    tuned.eval()
    with torch.no_grad(), _precision(model, config):
        parts = [tuned.pooled(inputs.volumes(model, rows[some])) for some in _micro(len(rows), config)]
        features = torch.cat(parts)
        tuned.feature_mean.copy_(features.mean(0))
        tuned.feature_scale.copy_(features.std(0, correction=0).clamp(min=1e-6))


def _run_epoch(model: Pretrained, tuned: TunedModel, optimizer: torch.optim.Optimizer, plan: Plan, epoch: int) -> float:
    """One pass over the training clips; returns its mean loss, not finite where training broke down."""
    config, device = plan.config, model.device
    weight = torch.as_tensor(row_weights(plan.train, plan.problem, plan.balanced), dtype=torch.float32, device=device)
    truth = plan.target.truth(plan.train).to(device)
    order = _order(len(plan.train.inputs), plan.seed, f"order/{epoch}")
    steps = -(-len(order) // config.batch_size)
    total = 0.0
    tuned.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _bar(plan, epoch, len(order)) as bar:
        torch.manual_seed(generator(plan.seed, f"dropout/{epoch}").initial_seed())
        for step in range(steps):
            _set_rate(optimizer, epoch * steps + step, config.epochs * steps)
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            optimizer.zero_grad(set_to_none=True)
            loss = _gradients(model, tuned, plan, epoch, rows, truth[rows], weight[rows])
            if not math.isfinite(loss):
                return loss
            torch.nn.utils.clip_grad_norm_(tuned.trained().values(), CLIP_GRADIENT)
            optimizer.step()
            total += loss * len(rows)
            bar.update(len(rows))
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    return total / len(order)


def _gradients(
    model: Pretrained, tuned: TunedModel, plan: Plan, epoch: int, rows: np.ndarray, truth: Tensor, weight: Tensor
) -> float:
    """Sum the gradients of a step's clips, micro-batch after micro-batch; returns their weighted mean loss."""
    total = 0.0
    for some in _micro(len(rows), plan.config):
        keys = clip_keys(plan.seed, epoch, torch.as_tensor(rows[some], device=model.device))
        output = _forward(model, tuned, plan.train.inputs, rows[some], plan.config, keys)
        loss = (plan.target.losses(output.float(), truth[some]) * weight[some]).sum() / len(rows)
        loss.backward()
        total += float(loss.detach())
    return total


def _note(
    model: Pretrained, tuned: TunedModel, plan: Plan, course: Course, loss: float, best: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Write an epoch down; returns the best parameters so far."""
    measured = validation(model, tuned, plan.val, plan) if plan.val is not None else -float(course.epochs)
    entry = {"loss": loss, **({"val_loss": measured} if plan.val is not None else {})}
    course.history.append(entry)
    _log.info("%s: epoch %d of %d, %s", plan.name, course.epochs, plan.epochs, _text(entry))
    if math.isfinite(measured) and measured < course.best_loss:
        course.best_epoch, course.best_loss = course.epochs, measured
        return {name: value.detach().cpu().clone() for name, value in tuned.result().items()}
    return best


def _save(
    tuned: TunedModel, optimizer: torch.optim.Optimizer, course: Course, best: dict[str, Tensor], folder: Path
) -> None:
    tensors = {f"now/{name}": value for name, value in tuned.result().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for name, parameter in tuned.trained().items():
        for what, value in optimizer.state[parameter].items():
            tensors[f"{what}/{name}"] = value
    save_state(folder, tensors, vars(course))


def _forward(
    model: Pretrained,
    tuned: TunedModel,
    inputs: ClipRows,
    rows: np.ndarray,
    config: TuningConfig,
    keys: Tensor | None = None,
) -> Tensor:
    volume = inputs.volumes(model, rows)
    with _precision(model, config):
        return tuned(volume, keys)


def _precision(model: Pretrained, config: TuningConfig) -> torch.autocast:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=config.bf16)


def _micro(rows: int, config: TuningConfig) -> Iterator[np.ndarray]:
    for first in range(0, rows, config.micro_batch):
        yield np.arange(first, min(first + config.micro_batch, rows))


def _order(rows: int, seed: int, purpose: str) -> np.ndarray:
    return torch.randperm(rows, generator=generator(seed, purpose)).numpy()


def _set_rate(optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
    warm = max(1, round(WARM_SHARE * total))
    factor = min(1.0, (step + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * step / total))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _bar(plan: Plan, epoch: int, clips: int) -> tqdm:
    title = f"{plan.name}, epoch {epoch + 1}/{plan.epochs}"
    return tqdm(total=clips, unit="clip", desc=title, disable=None, leave=False, mininterval=0.3)


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _text(entry: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in entry.items())
