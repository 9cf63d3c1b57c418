"""Tuning as a method of a task: rates and epochs chosen on validation units, then a fit on the fit units.

For every rate a model is trained on the train units of the fold's first choice and stopped by its validation units; the
rate with the least validation loss is taken. Where the fold gives more units to fit on than these (folds), a new model
is trained on all of them for the number of epochs that was best. Every training has a folder of its own,
FOLDER/METHOD/seed-S/FOLD/{lr-RATE, fit}, and one that is there, finished or not, is not done again. Between trainings
no weights are held in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmri_scale.errors import CheckpointError, TrainingError
from fmri_scale.evaluation.probes import Chosen, Problem, check_rows, unit_means
from fmri_scale.evaluation.probes.target import TrainingTarget
from fmri_scale.evaluation.sealed import Part, refuse_test
from fmri_scale.evaluation.tuning.adapt import TunedModel, adapt, share
from fmri_scale.evaluation.tuning.clips import ClipRows
from fmri_scale.evaluation.tuning.files import digest, read_facts, read_weights
from fmri_scale.evaluation.tuning.loop import Plan, predict, train
from fmri_scale.evaluation.tuning.settings import TuningConfig
from fmri_scale.log import counted, get_logger
from fmri_scale.release import Pretrained, from_pretrained

NEUTRAL = ("releases", "corpus", "methods", "prompt_lr", "lora_lr", "full_lr", "device", "recompute", "micro_batch")
"Settings that do not decide what one training gives, or stand elsewhere in its key."

_log = get_logger(__name__)


def load_tuned(model: Pretrained, folder: Path) -> tuple[TunedModel, TrainingTarget]:
    """Put a tuned model together from its release and its folder.

    Parameters
    ----------
    model
        The release that was tuned; its backbone is taken and changed.
    folder
        With tuned.json and tuned.safetensors.

    Returns
    -------
    tuned, target
        `target.scores(tuned(volumes))` gives class probabilities or values.

    Raises
    ------
    CheckpointError
        The folder holds no tuned model, a damaged one, or one of another release.
    """
    facts = read_facts(folder)
    if facts is None:
        raise CheckpointError(f"{folder}: holds no tuned model")
    if facts["release"] != model.identity:
        raise CheckpointError(f"{folder}: tuned from release {facts['release'][:12]}, not {model.identity[:12]}")
    target = TrainingTarget(**facts["target"])
    tuned = adapt(model, facts["method"], TuningConfig(**facts["settings"]), target.outputs, facts["seed"])
    weights = read_weights(folder, facts)
    expected = {name: tuple(value.shape) for name, value in tuned.result().items()}
    if expected != {name: tuple(value.shape) for name, value in weights.items()}:
        raise CheckpointError(f"{folder}: its parameters are not those of {facts['method']} on this release")
    tuned.take(weights)
    return tuned.eval(), target


@dataclass(frozen=True)
class FittedModel:
    """A tuned model in its folder, loaded when it is asked for scores."""

    release: str
    folder: Path
    key: str
    config: TuningConfig

    def scores(self, inputs: ClipRows) -> np.ndarray:
        """Class probabilities float64 (R, K), or values (R,)."""
        model = from_pretrained(self.release, device=self.config.device)
        facts = read_facts(self.folder)
        if facts is None or facts["key"] != self.key:
            raise CheckpointError(f"{self.folder}: was changed while it was in use; start the command again")
        tuned, target = load_tuned(model, self.folder)
        return target.scores(predict(model, tuned, inputs, self.config))


class ModelTuner:
    """Tunes a release by one method.

    Parameters
    ----------
    name
        Of the line in the table.
    method
        One of `settings.METHODS`.
    release
        Folder of the release, by seed.
    folder
        Where trainings are kept.
    balanced
        Weight classes alike.
    """

    def __init__(
        self,
        name: str,
        method: str,
        config: TuningConfig,
        release: Callable[[int], str],
        folder: Path,
        balanced: bool = False,
    ) -> None:
        self.name = name
        self._method, self._config, self._release, self._balanced = method, config, release, balanced
        self._folder = folder / _file_name(name)

    def share(self, outputs: int, seed: int) -> str:
        """Say how much of the model is trained."""
        model = from_pretrained(self._release(seed))
        return str(share(adapt(model, self._method, self._config, outputs, seed), self._method))

    def tune(self, fold: str, choices: Sequence[tuple[Part, Part]], fit: Part, problem: Problem, seed: int) -> Chosen:
        """Choose a rate and train; see the head of this file.

        Raises
        ------
        DataError
            The rows to fit on hold one class only.
        TrainingError
            Training breaks down with every rate.
        """
        train_part, val = choices[0]
        refuse_test(val)
        for part in (train_part, fit):
            check_rows(part, problem)
        folder = self._folder / f"seed-{seed}" / _file_name(fold)
        found, broken = [], []
        for lr in self._config.rates(self._method):
            place = folder / f"lr-{lr:g}"
            try:
                facts = self._train(place, fold, train_part, val, problem, seed, lr, self._config.epochs)
            except TrainingError as error:
                _log.warning("%s", error)
                broken.append(error)
                continue
            found.append((facts["history"][facts["epochs"] - 1]["val_loss"], facts, place))
        if not found:
            raise broken[0]
        _, facts, place = min(found, key=lambda item: item[0])
        lr, epochs = facts["rate"], facts["epochs"]
        fitted = FittedModel(self._release(seed), place, facts["key"], self._config)
        unit, scores = unit_means(fitted.scores(val.inputs), val.unit)
        if set(fit.inputs.rows.tolist()) != set(train_part.inputs.rows.tolist()):
            facts = self._train(folder / "fit", fold, fit, None, problem, seed, lr, epochs)
            fitted = FittedModel(self._release(seed), folder / "fit", facts["key"], self._config)
        losses = tuple(loss for loss, *_ in found)
        return Chosen(fitted, f"rate {lr:g}, {counted(epochs, 'epoch')}", losses, unit, scores)

    def _train(
        self, place: Path, fold: str, part: Part, val: Part | None, problem: Problem, seed: int, lr: float, epochs: int
    ) -> dict[str, Any]:
        """Train in a folder unless that was done; returns the facts of the result."""
        model = from_pretrained(self._release(seed), device=self._config.device)
        target = TrainingTarget.of(part, problem)
        settings = asdict(self._config)
        decides = {name: value for name, value in settings.items() if name not in NEUTRAL}
        key = digest(
            [self._method, lr, epochs, seed, self._balanced, model.identity, decides, problem],
            *(_content(rows) for rows in (part, val)),
        )
        done = read_facts(place)
        if done is not None and done["key"] == key:
            return done
        tuned = adapt(model, self._method, self._config, target.outputs, seed)
        name = f"{self.name}, seed {seed}, {fold}, rate {lr:g}" + ("" if val is not None else ", all units")
        _log.info("%s: %s", name, share(tuned, self._method))
        facts = {
            "key": key,
            "method": self._method,
            "release": model.identity,
            "seed": seed,
            "rate": lr,
            "classes": list(problem.classes),
            "target": asdict(target),
            "settings": settings,
        }
        plan = Plan(name, self._config, problem, target, lr, epochs, seed, self._balanced, part, val, facts)
        train(model, tuned, plan, place)
        written = read_facts(place)
        assert written is not None
        return written


def _content(part: Part | None) -> bytes:
    """What decides a part: the clips, their units and the truth."""
    if part is None:
        return b""
    clips = part.inputs.clips
    places = np.stack([clips.run[part.inputs.rows], clips.start[part.inputs.rows], part.unit])
    return clips.identity.encode() + places.tobytes() + np.ascontiguousarray(part.truth).tobytes()


def _file_name(text: str) -> str:
    """A name as a folder's: letters, digits, - and _; where others are replaced a hash keeps it apart from its like."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in text)
    return safe if safe == text else f"{safe}-{digest(text)[:6]}"
