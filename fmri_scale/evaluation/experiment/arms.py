"""The arms of an experiment: train, export, extract features; each a folder, each step done once.

OUT/arms/ARM/seed-S/{run, release, features/CORPUS.npz} and OUT/untrained/ARCHITECTURE/seed-S/features/CORPUS.npz.
Training runs in a process of its own, which continues from its newest checkpoint and dies with this one after saving.
"""

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmri_scale.config import Config, load_typed, to_dict
from fmri_scale.errors import ConfigError, LaunchError
from fmri_scale.evaluation.corpus_features import corpus_runs, extract_stored_run
from fmri_scale.evaluation.experiment.schema import ExperimentConfig
from fmri_scale.evaluation.experiment.steps import digest, once
from fmri_scale.evaluation.features import save_features
from fmri_scale.evaluation.untrained import untrained
from fmri_scale.release import Pretrained, from_pretrained
from fmri_scale.release.export import export
from fmri_scale.release.start import run_config
from fmri_scale.training.folder import take
from fmri_scale.training.signals import INTERRUPTED, REQUEUE
from fmri_scale.training.supervise.processes import die_with_parent
from sharding.corpus import open_corpus

LOCK_WAIT_S = 120.0
"Time given to the training process of a killed experiment to save and leave."

STOPPED = (REQUEUE, INTERRUPTED, -signal.SIGTERM, -signal.SIGINT)


@dataclass(frozen=True)
class FeatureSettings:
    """How features are extracted."""

    stride: int | None = None
    batch_size: int = 4
    device: str = "cpu"
    tokens: bool = False


@dataclass(frozen=True)
class Arm:
    """One arm with one seed."""

    name: str
    seed: int
    folder: Path
    items: tuple[str, ...]
    "Run files and overrides."

    @property
    def run_dir(self) -> Path:
        """Folder of the training run."""
        return self.folder / "run"

    @property
    def release(self) -> Path:
        """Folder of the release."""
        return self.folder / "release"


def arms_of(config: ExperimentConfig, out: Path) -> list[Arm]:
    """List arms and seeds, checked: every configuration must resolve before anything is trained."""
    found = []
    for name, own in config.arms.items():
        for seed in config.seeds:
            folder = out / "arms" / name / f"seed-{seed}"
            items = [config.fill(item, out) for item in (*config.pretrain, *own)]
            arm = Arm(name, seed, folder, (*items, f"seed={seed}", f"run_dir={folder / 'run'}"))
            _check(arm, out)
            found.append(arm)
    return found


def _check(arm: Arm, out: Path) -> None:
    """Resolve an arm; one that starts from a release which another arm is still to make, as far as its keys go."""
    start = load_typed(Config, *_divide(arm.items)).start_from
    if start and Path(start).is_relative_to(out) and not Path(start).exists():
        return
    resolve(arm)


def resolve(arm: Arm) -> dict:
    """Resolved configuration of an arm's training run."""
    files, overrides = _divide(arm.items)
    return to_dict(run_config(files, overrides))


def make_arm(arm: Arm, config: ExperimentConfig, corpora: dict[str, Path]) -> None:
    """Train, export and extract what is not there yet.

    Raises
    ------
    LaunchError
        Training was stopped or failed; starting the experiment again continues it.
    """
    key = digest(json.dumps(resolve(arm), sort_keys=True))
    once(arm.folder / "run-done", key, lambda: train(arm, config.launcher))
    once(arm.folder / "release-done", key, lambda: _export(arm))
    settings = feature_settings(config.features)
    for name, path in corpora.items():
        work = functools.partial(_extract, arm.release, path, arm.folder / "features" / f"{name}.npz", settings, None)
        once(arm.folder / f"features-{name}-done", digest(key, repr(settings), corpus_id(path)), work)


def make_untrained(arm: Arm, folder: Path, config: ExperimentConfig, corpora: dict[str, Path]) -> None:
    """Extract the features of an arm's model before training, with the arm's seed."""
    settings = feature_settings(config.features)
    key = digest(architecture(arm), str(arm.seed), repr(settings))
    for name, path in corpora.items():
        target = folder / "features" / f"{name}.npz"
        work = functools.partial(_extract, arm.release, path, target, settings, arm.seed)
        once(folder / f"features-{name}-done", digest(key, corpus_id(path)), work)


def architecture(arm: Arm) -> str:
    """What decides an untrained backbone's features: the model and the normalisation."""
    resolved = resolve(arm)
    kept = {"model": resolved["model"], "normalisation": resolved["data"]["normalisation"]}
    return json.dumps(kept, sort_keys=True)


def train(arm: Arm, launcher: Sequence[str]) -> None:
    """Run training to its end."""
    _wait_for_folder(arm.run_dir)
    command = [*(launcher or [sys.executable, "-m", "fmri_scale.train"]), *arm.items]
    # The child outlives a killed experiment only to save: it is asked to stop when this process ends.
    child = subprocess.Popen(command, preexec_fn=lambda: die_with_parent(signal.SIGTERM))
    try:
        code = child.wait()
    except BaseException:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    if code in STOPPED:
        raise LaunchError(f"{arm.run_dir}: training was stopped (exit code {code}); start the experiment again")
    if code:
        raise LaunchError(f"{arm.run_dir}: training ended with exit code {code}; it says above why")
    status = json.loads((arm.run_dir / "status.json").read_text(encoding="utf-8"))
    if status["state"] != "done":
        raise LaunchError(f"{arm.run_dir}: status.json says {status['state']!r}, not done; start the experiment again")


def curve(arm: Arm) -> list[dict]:
    """Rows of a run's metrics that hold a loss."""
    lines = (arm.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def summary(arm: Arm) -> dict[str, float]:
    """Last loss of a run, and the fractions hidden: means over its last tenth of logged steps."""
    rows = curve(arm)
    last = rows[-max(1, len(rows) // 10) :]
    names = [name for name in ("loss", "masked_fraction", "masked_fraction_brain") if name in last[-1]]
    return {name: float(np.mean([row[name] for row in last])) for name in names}


def feature_settings(items: Sequence[str]) -> FeatureSettings:
    """Read stride=..., batch_size=..., device=..., tokens=...

    Raises
    ------
    ConfigError
        Another key, or a value that is none.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "stride": int,
        "batch_size": int,
        "device": str,
        "tokens": {"true": True, "false": False}.__getitem__,
    }
    given: dict[str, Any] = {}
    for item in items:
        name, _, value = item.partition("=")
        try:
            given[name] = readers[name](value)
        except (KeyError, ValueError):
            raise ConfigError(
                f"features: {item!r}: expected stride=FRAMES, batch_size=N, device=NAME or tokens=true"
            ) from None
    return FeatureSettings(**given)


def corpus_id(path: Path) -> str:
    """Hash of what a corpus holds."""
    return json.loads((path / "corpus.json").read_text(encoding="utf-8"))["corpus_id"]


def _export(arm: Arm) -> None:
    export(arm.run_dir, arm.release, overwrite=True)


def _extract(release: Path, corpus: Path, target: Path, settings: FeatureSettings, seed: int | None) -> None:
    model: Pretrained = from_pretrained(release, device=settings.device)
    if seed is not None:
        model = untrained(model, seed)
    runs = corpus_runs(model, open_corpus(corpus))
    target.parent.mkdir(parents=True, exist_ok=True)
    cut = (settings.batch_size, settings.stride, settings.tokens)
    features = [extract_stored_run(model, run, *cut) for run in runs]
    save_features(features, model, target, overwrite=True)


def _divide(items: Sequence[str]) -> tuple[list[str], list[str]]:
    return [item for item in items if "=" not in item], [item for item in items if "=" in item]


def _wait_for_folder(run_dir: Path) -> None:
    """Wait until the training process of a killed experiment has left the folder."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            take(run_dir).close()
            return
        except LaunchError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
