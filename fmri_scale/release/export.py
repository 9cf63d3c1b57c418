"""Turn a training run into a release folder that a stranger can use, whole or not at all.

In: a run folder (its newest whole checkpoint) or one checkpoint. Out: the folder described in `layout`, filled
aside, loaded back once to store its reference output, sealed with checksums, then renamed.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmri_scale import __version__
from fmri_scale.checkpoint import average, consolidated_state, locate, read_config, read_state
from fmri_scale.checkpoint import layout as checkpoint_layout
from fmri_scale.config import LossConfig, MaskConfig, ModelConfig
from fmri_scale.errors import CheckpointError
from fmri_scale.models import MaskedAutoencoder
from fmri_scale.models.contrastive import PROJECTOR
from fmri_scale.release import checksums, layout, reference
from fmri_scale.release.card import model_card
from fmri_scale.release.load import open_release
from fmri_scale.release.preprocessing import Preprocessing
from fmri_scale.release.record import read_corpus, training_record
from fmri_scale.release.weights import DTYPES, check_shapes, save_weights
from sharding.errors import ShardingError
from sharding.mask_image import read_mask
from sharding.preprocessing import PreprocessingSettings

CONTENTS = ("autoencoder", "encoder")


@dataclass(frozen=True)
class ExportSettings:
    """What a release holds."""

    contents: str = "autoencoder"
    "autoencoder (with decoder and mask tokens), or encoder alone."
    dtype: str = "fp32"
    "fp32 or bf16, of the stored weights."
    weights: str = "auto"
    "ema (their moving average, optim.ema_decay), raw (those of the last step), or auto: ema where the run kept one."
    name: str = ""
    "Title of the model card; empty takes the run folder's name."
    licence: str = ""
    "Licence of the weights as the hub names it (cc-by-4.0, mit, ...); empty says that none was given."


def export(
    source: str | Path, out: str | Path, settings: ExportSettings | None = None, overwrite: bool = False
) -> Path:
    """Write a release.

    Parameters
    ----------
    source : run folder, or the folder of one checkpoint.
    out : folder to make.
    settings : what the release holds; defaults where None.
    overwrite : replace a release that is there.

    Raises
    ------
    CheckpointError : `source` is no run or holds no whole checkpoint, or `out` cannot be written.
    """
    settings, out = settings or ExportSettings(), Path(out)
    layout.check_vacant(out, overwrite)
    checkpoint = locate(source)
    config, state = read_config(checkpoint.path), read_state(checkpoint.path)
    corpus, mask_file = read_corpus(checkpoint), checkpoint.path / checkpoint_layout.MASK
    averaged = settings.weights == "ema" or (settings.weights == "auto" and average.is_kept(checkpoint.path))
    found = consolidated_state(checkpoint.path, averaged)
    weights = {name: value for name, value in found.items() if not name.startswith(PROJECTOR)}
    if not config.objective.reconstruction and settings.contents != "encoder":
        raise CheckpointError(f"{checkpoint.path}: trained by contrast alone: no decoder; add --encoder-only")
    with torch.device("meta"):
        expected = MaskedAutoencoder(config.model).state_dict()
    check_shapes(shapes_of(weights), shapes_of(expected), str(checkpoint.path))
    record = training_record(checkpoint, config, state, corpus) | {"weights": "ema" if averaged else "raw"}
    preprocessing = _preprocessing(mask_file, corpus, config.data.normalisation, config.model.num_frames)
    named = dataclasses.replace(settings, name=settings.name or _run_name(checkpoint.path))
    with layout.staged_folder(out, overwrite) as folder:
        shutil.copyfile(mask_file, folder / layout.MASK)
        write_release(folder, weights, config.model, config.mask, preprocessing, record, named, config.loss)
    return out


def write_release(
    folder: Path,
    weights: dict[str, Tensor],
    model: ModelConfig,
    masking: MaskConfig,
    preprocessing: Preprocessing,
    record: dict[str, Any],
    settings: ExportSettings,
    loss: LossConfig | None = None,
) -> None:
    """Fill a staged folder that holds the mask (and perhaps optional files), and seal it."""
    if settings.contents == "encoder":
        weights = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    save_weights(weights, folder / layout.WEIGHTS, DTYPES[settings.dtype])
    parameters = sum(value.numel() for value in weights.values())
    layout.write_json(folder / layout.CONFIG, _config(model, masking, loss or LossConfig(), settings, parameters))
    layout.write_json(folder / layout.PREPROCESSING, preprocessing.to_json())
    layout.write_json(folder / layout.TRAINING, record)
    layout.write_json(folder / layout.REFERENCE, reference.measure(open_release(folder)))
    (folder / layout.CARD).write_text(model_card(folder))
    checksums.seal(folder)


def shapes_of(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}


def _config(
    model: ModelConfig, masking: MaskConfig, loss: LossConfig, settings: ExportSettings, parameters: int
) -> dict[str, Any]:
    # how a run computes is not part of what was learnt: kernels and recomputation are the user's choice
    shape = dataclasses.replace(model, backend="auto", checkpoint_blocks=False)
    return {
        "library_name": "fmri_scale",
        "library_version": __version__,
        "format_version": layout.FORMAT_VERSION,
        "name": settings.name,
        "licence": settings.licence,
        "contents": settings.contents,
        "dtype": settings.dtype,
        "parameters": parameters,
        "model": dataclasses.asdict(shape),
        "mask": dataclasses.asdict(masking) | {"atlas": Path(masking.atlas).name, "labels": Path(masking.labels).name},
        "loss": dataclasses.asdict(loss),
    }


def _preprocessing(mask_file: Path, corpus: dict[str, Any], normalisation: str, num_frames: int) -> Preprocessing:
    try:
        mask = read_mask(mask_file)
        settings = PreprocessingSettings.from_json(corpus["settings"]["preprocessing"])
    except (ShardingError, KeyError, TypeError) as error:
        raise CheckpointError(f"{mask_file.parent}: its corpus' preprocessing cannot be read: {error}") from error
    return Preprocessing.of(settings, normalisation, num_frames, mask)


def _run_name(checkpoint: Path) -> str:
    return checkpoint.resolve().parent.parent.name
