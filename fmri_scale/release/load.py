"""`from_pretrained`: a release folder, or a name on the Hugging Face hub, to a model that is exactly that release.

Every file is compared with its checksum, the weights with the configuration, the mask with its hash. What does not
fit is an error that names the file or key; no weight is ever random. No training library is imported.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmri_scale.config import LossConfig, MaskConfig, ModelConfig
from fmri_scale.config.check import check_model
from fmri_scale.data import reduced_mask
from fmri_scale.errors import CheckpointError, ConfigError
from fmri_scale.models import MaskedAutoencoder
from fmri_scale.release import checksums, layout
from fmri_scale.release.preprocessing import Preprocessing
from fmri_scale.release.pretrained import Pretrained
from fmri_scale.release.weights import load_weights
from sharding.errors import ShardingError
from sharding.mask import mask_sha256
from sharding.mask_image import read_mask


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> Pretrained:
    """Load a released model, in eval mode, float32.

    Parameters
    ----------
    source : folder of a release, or `organisation/name` on the hub (downloaded once and kept).
    revision : branch, tag or commit on the hub; its newest version if None.
    device : where the weights go.
    cache_dir, token : passed to `huggingface_hub`.

    Raises
    ------
    CheckpointError : a file is missing, damaged or does not fit the others; the message names it.
    ConfigError : there is no such device here.
    """
    device = usable_device(device)
    folder = locate(source, revision, cache_dir, token)
    checksums.verify(folder)
    model = open_release(folder)
    model.identity = checksums.identity(folder)
    return model.to(device)


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device that tensors can be made on; ConfigError, naming those that are here, if it is none."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ImportError) as error:  # each kind of device has its own way to say so
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        here = ", ".join(["cpu", *(f"cuda:{number}" for number in range(cards))])
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device {str(device)!r} cannot be used: {reason}; this machine has {here}") from error
    return found


def locate(
    source: str | Path, revision: str | None = None, cache_dir: str | Path | None = None, token: str | None = None
) -> Path:
    """Return the folder of a release, downloading it where `source` is a name on the hub and not a folder."""
    if Path(source).is_dir():
        if revision is not None:
            raise CheckpointError(f"{source}: is a folder, which has no revision {revision!r}; leave the revision out")
        return Path(source)
    from fmri_scale.release.hub import download, is_name

    if not is_name(str(source)):
        raise CheckpointError(f"{source}: no such folder, and not organisation/name on the hub")
    return download(str(source), revision, cache_dir, token)


def open_release(folder: Path) -> Pretrained:
    """Build the model of a folder, in eval mode; its checksums are the caller's concern."""
    content = layout.read_json(folder / layout.CONFIG)
    config, masking = read_model_config(folder, content), _fields(MaskConfig, folder, content, "mask")
    with torch.device("meta"):
        model = Pretrained(config, _contents(folder, content))
    load_weights(folder / layout.WEIGHTS, model.model)
    model.preprocessing = read_preprocessing(folder)
    model.mask = _mask(folder, model.preprocessing)
    if config.brain_tokens:
        model.model.set_brain(reduced_mask(torch.from_numpy(model.mask), config.image_size))
    model.mask_config = masking
    if isinstance(model.model, MaskedAutoencoder) and "loss" in content:  # releases of earlier versions have none
        model.model.loss = _fields(LossConfig, folder, content, "loss")
    model.record = layout.read_json(folder / layout.TRAINING)
    model.path = folder
    if model.preprocessing.num_frames != config.num_frames:
        raise CheckpointError(f"{folder / layout.PREPROCESSING}: clips of another length than in {layout.CONFIG}")
    return model.eval()


def read_model_config(folder: Path, content: dict[str, Any] | None = None) -> ModelConfig:
    """Return the shape of a release's model; an unknown or senseless key is a CheckpointError."""
    config = _fields(ModelConfig, folder, content or layout.read_json(folder / layout.CONFIG), "model")
    try:
        check_model(config)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{folder / layout.CONFIG}: {error}") from error
    return config


def read_preprocessing(folder: Path) -> Preprocessing:
    """Return what a release says about preprocessing."""
    path = folder / layout.PREPROCESSING
    return Preprocessing.from_json(layout.read_json(path), str(path))


def _contents(folder: Path, content: dict[str, Any]) -> str:
    contents = content.get("contents")
    if contents not in ("autoencoder", "encoder"):
        raise CheckpointError(f"{folder / layout.CONFIG}: contents {contents!r}; expected autoencoder or encoder")
    return contents


def _fields(kind: type, folder: Path, content: dict[str, Any], section: str) -> Any:
    values = content.get(section)
    known = {f.name for f in dataclasses.fields(kind)}
    if not isinstance(values, dict) or not values.keys() <= known:
        odd = sorted(values.keys() - known) if isinstance(values, dict) else values
        raise CheckpointError(
            f"{folder / layout.CONFIG}: section {section!r} has keys this version does not know: {odd}; "
            "install a newer fmri_scale"
        )
    return kind(**values)


def _mask(folder: Path, preprocessing: Preprocessing) -> np.ndarray:
    path = folder / layout.MASK
    try:
        mask = read_mask(path)
    except ShardingError as error:
        raise CheckpointError(str(error)) from error
    if mask_sha256(mask) != preprocessing.mask_sha256:
        raise CheckpointError(f"{path}: not the mask that {layout.PREPROCESSING} names; fetch it again")
    return mask
