"""Continue training from a release: its shape and normalisation as defaults, its weights as the start.

`run_config` resolves a run's configuration with what the release it names decides; `starter` gives what puts the
release's weights into the run's model, fitted to another clip length or patch grid (see `fit`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmri_scale.checkpoint.collective import rank
from fmri_scale.checkpoint.files import write_json
from fmri_scale.config import Config, load_config
from fmri_scale.config.load import load_typed
from fmri_scale.errors import CheckpointError, ConfigError
from fmri_scale.log import get_logger
from fmri_scale.release import Pretrained, from_pretrained
from fmri_scale.release.export import shapes_of
from fmri_scale.release.fit import fit
from fmri_scale.release.load import locate, read_model_config, read_preprocessing

log = get_logger(__name__)

START = "start.json"
"In the run's folder: which release its weights came from, and how each of them was taken."


def run_config(files: Sequence[str | Path], overrides: Sequence[str]) -> Config:
    """Return the checked configuration of a run; where it names a release, with that release's `defaults`.

    Raises
    ------
    ConfigError : as `load_config`.
    CheckpointError : the release is missing or damaged.
    """
    source = load_typed(Config, files, overrides).start_from
    return load_config(files, overrides, defaults(source) if source else None)


def defaults(source: str | Path) -> dict[str, Any]:
    """Return the parts of a run's configuration that a release decides unless the run says otherwise."""
    folder = locate(source)
    model = dataclasses.asdict(read_model_config(folder))
    return {"model": model, "data": {"normalisation": read_preprocessing(folder).normalisation}}


def starter(config: Config) -> Callable[[nn.Module], None]:
    """Return what puts the weights of `config.start_from` into a run's model.

    Raises
    ------
    ConfigError : the run normalises otherwise than the release was trained.
    CheckpointError : the release is damaged; later, the model differs in more than clip, patch grid and windows.
    """
    release = from_pretrained(config.start_from)
    trained = release.preprocessing.normalisation
    if config.data.normalisation != trained:
        raise ConfigError(
            f"data.normalisation={config.data.normalisation}, but {config.start_from} was trained with {trained}; "
            "leave the key out, it is taken from the release"
        )
    return lambda model: start(model, release, config)


def start(model: nn.Module, release: Pretrained, config: Config) -> None:
    """Overwrite a model's weights with those of a release, saying what was taken, fitted and left to the seed."""
    try:
        found = fit(release.model.state_dict(), release.config, shapes_of(model.state_dict()), config.model)
    except CheckpointError as error:
        raise CheckpointError(f"{config.start_from}: {error}") from error
    _tell_differences(release, config)
    if rank() == 0:
        origin = {"source": str(config.start_from), "release": release.identity}
        parts = {"taken": found.taken, "fitted": found.fitted, "new": found.new}
        write_json(Path(config.run_dir) / START, origin | parts)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in found.state.items():
            own[name].copy_(value)
    log.info("start from %s, release %s: %d tensors taken", config.start_from, release.identity[:12], len(found.taken))
    for word, names in (
        ("fitted to this run's clips and patches", found.fitted),
        ("new, drawn from the seed", found.new),
    ):
        if names:
            log.info("start from %s: %s: %s", config.start_from, word, ", ".join(names))


def _tell_differences(release: Pretrained, config: Config) -> None:
    """Say which keys of the model differ: windows, say, leave no trace in the shapes of weights."""
    for field in dataclasses.fields(config.model):
        before, now = getattr(release.config, field.name), getattr(config.model, field.name)
        if before != now and field.name not in ("backend", "checkpoint_blocks"):
            log.info("start from %s: model.%s %s -> %s", config.start_from, field.name, before, now)
