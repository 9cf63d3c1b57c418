"""How well a masked autoencoder predicts each region when it is hidden.

In: a release with its decoder, and runs. Out: for each run and region the squared error of hidden voxels over their
variance about the clip's own mean in time: 0 is perfect, 1 is what a still picture would give. Whoever predicts
anatomy alone gets 1, whatever the normalisation. Shape suffixes: R regions, K pieces of regions, T frames.
"""

import numpy as np
import torch

from fmri_scale.evaluation.attribution.effects import batches, volume_of
from fmri_scale.evaluation.attribution.regions import Regions
from fmri_scale.evaluation.attribution.runs import RunLibrary, spread
from fmri_scale.evaluation.features import CodedRun, clip_starts
from fmri_scale.log import get_logger
from fmri_scale.release import Pretrained

_log = get_logger(__name__)


@torch.inference_mode()
def reconstruction_error(
    model: Pretrained,
    run: CodedRun,
    starts: np.ndarray,
    regions: Regions,
    ratio: float | None = None,
    seed: int = 0,
    batch_size: int = 1,
) -> np.ndarray:
    """Error by region over some clips of a run.

    Parameters
    ----------
    ratio
        Share of tokens hidden; that of training if None.
    seed
        Of the masks; clip c of the run is drawn with seed + c.

    Returns
    -------
    float64 (R,); NaN for a region of which nothing was hidden or that does not change.
    """
    pieces = regions.pieces(model.config.image_size)
    weight_K = np.asarray(pieces.mean.sum(axis=1)).ravel()
    error, variance = np.zeros(len(regions)), np.zeros(len(regions))
    for number, batch in enumerate(batches(model, run, starts, batch_size)):
        volume = volume_of(model, batch)
        found = model.reconstruct(volume, ratio, seed + number)
        place = torch.from_numpy(pieces.voxel).to(volume.device)
        truth, guess, hidden = (
            x.expand_as(volume).flatten(1, 4)[:, place].double().cpu().numpy()
            for x in (volume, found.volume, _as_volume(found.hidden, volume).double())
        )
        still = truth.mean(axis=2, keepdims=True)
        for total, reference in ((error, guess), (variance, still)):
            by_piece = (hidden * (truth - reference) ** 2).sum(axis=(0, 2)) * weight_K
            total += np.bincount(pieces.region, by_piece, minlength=len(regions))
    return np.divide(error, variance, out=np.full(len(regions), np.nan), where=variance > 0)


def _as_volume(hidden: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    """Hidden voxels [B, X, Y, Z, T] with the channel axis of a volume."""
    return hidden.unsqueeze(1) if hidden.ndim == volume.ndim - 1 else hidden


def errors_of_people(
    model: Pretrained, library: RunLibrary, regions: Regions, ratio: float | None, clips: int, batch_size: int
) -> np.ndarray:
    """Error of each person, float64 (people, R): mean over that person's runs.

    Parameters
    ----------
    clips
        Most clips of a run, evenly spread; 0 takes all.
    """
    people, which = np.unique(library.entities.names("subject").astype(str), return_inverse=True)
    held: list[list[np.ndarray]] = [[] for _ in people]
    for number, person in enumerate(which):
        with library.open(number) as (run, num_frames):
            starts = spread(clip_starts(num_frames, model.preprocessing.num_frames), clips)
            held[person].append(reconstruction_error(model, run, starts, regions, ratio, number, batch_size))
        _log.info("reconstruction: run %d of %d", number + 1, len(which))
    return np.stack([_mean_of_known(np.stack(errors)) for errors in held])


def _mean_of_known(errors: np.ndarray) -> np.ndarray:
    known = ~np.isnan(errors)
    total, count = np.where(known, errors, 0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, count, out=np.full(errors.shape[1], np.nan), where=count > 0)
