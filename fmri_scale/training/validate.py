"""The loss on people the model does not train on: the same clips and the same masks at every validation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fmri_scale.config import Config
from fmri_scale.data import ClipBatch, sample_table, validation_clips
from fmri_scale.data.validation import fixed_clips, weighted_mean
from fmri_scale.errors import DataError
from fmri_scale.training.dist import exchange
from fmri_scale.training.launch import Launch
from sharding.corpus import Corpus

SPLIT = "val"


def require_validation(corpora: Sequence[Corpus], num_frames: int) -> None:
    """Raise DataError at the start rather than at the first validation of a corpus without a clip to validate on.

    Parameters
    ----------
    num_frames : frames of a clip; a validation sample must have as many.
    """
    try:
        table = sample_table(list(corpora), SPLIT)
    except DataError as error:
        raise DataError(
            f"log.validate_every is set, but {error}; set it to 0 or build with a validation split"
        ) from error
    try:
        fixed_clips(table, num_frames, 1)
    except DataError as error:
        raise DataError(
            f"log.validate_every is set, but {error} (model.num_frames={num_frames}); set log.validate_every=0, a "
            "smaller model.num_frames, or build longer validation samples"
        ) from error


def validation_loss(
    engine: Any,
    corpora: Sequence[Corpus],
    prepare: Callable[[ClipBatch], tuple],
    config: Config,
    launch: Launch,
    stopping: Callable[[], int],
    beat: Callable[[], None],
) -> float | None:
    """Return the mean loss over `log.validate_clips` clips of the validation split; every rank calls it.

    None where a rank is `stopping`: a request to stop does not wait for the end of a long validation. `beat` is called
    after every batch: a long validation is no hang.
    """
    batches = validation_clips(
        list(corpora),
        config.data,
        config.model.num_frames,
        config.optim.micro_batch,
        launch.rank,
        launch.world_size,
        config.log.validate_clips,
        SPLIT,
    )
    total, count = 0.0, 0.0
    engine.eval()
    with torch.no_grad():
        for batch in batches:
            if any(signal for (signal,) in exchange([float(stopping())], engine.device)):
                engine.train()
                return None
            clips = int(batch.valid.sum())
            total += float(engine(*prepare(batch)).loss) * clips
            count += clips
            beat()
    engine.train()
    return weighted_mean(total, count, engine.device)
