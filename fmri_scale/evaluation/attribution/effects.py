"""What each region does to the features of a run: occlusion, and integrated gradients.

A region is taken out by holding each of its voxels at its mean over the clip: anatomy stays, what the region does in
time goes, whatever the normalisation. `occlusion_effects` computes the features with and without; `gradient_effects`
integrates gradients along the straight way from the clip in which everything is still to the clip as it is
(Sundararajan et al. 2017; captum), so that the effects of all voxels sum to the change of each feature.

Out: float64 (R, E), mean over clips: how much of each feature is due to each region. A linear head on the features
turns them into effects on its scores by one product. Shape suffixes: R regions, E features, B clips, V voxels.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmri_scale.data import ClipBatch, decode
from fmri_scale.data.decoding import affine
from fmri_scale.errors import DataError
from fmri_scale.evaluation.attribution.regions import Pieces, Regions
from fmri_scale.evaluation.features import CodedRun, clip_batch
from fmri_scale.release import Pretrained


def occlusion_effects(
    model: Pretrained, run: CodedRun, starts: np.ndarray, regions: Regions, batch_size: int = 1
) -> np.ndarray:
    """Features minus features without a region.

    Parameters
    ----------
    run, starts
        A run, and the first frame of each clip to use.
    regions
        Over the model's own mask.
    batch_size
        Clips at a time.

    Returns
    -------
    float64 (R, E), mean over clips.
    """
    total = np.zeros((len(regions), model.width))
    for batch in batches(model, run, starts, batch_size):
        whole = _features(model, volume_of(model, batch))
        for region, volume in enumerate(_without_each(model, batch, regions)):
            total[region] += (whole - _features(model, volume)).sum(axis=0)
    return total / len(starts)


def gradient_effects(
    model: Pretrained, run: CodedRun, starts: np.ndarray, regions: Regions, batch_size: int = 1, steps: int = 16
) -> np.ndarray:
    """Integrated gradients of every feature, summed over each region's voxels and frames; as `occlusion_effects`.

    Parameters
    ----------
    steps
        Points on the way.

    Raises
    ------
    DataError
        captum is not installed.
    """
    integrated = _integrated_gradients(model)
    pieces = regions.pieces(model.config.image_size)
    total = np.zeros((len(regions), model.width))
    for batch in batches(model, run, starts, batch_size):
        nothing = replace(batch, codes=_still(batch.codes))
        volume, still = volume_of(model, batch), volume_of(model, nothing)
        moved_BKT = _piece_changes(batch, nothing, model.preprocessing.normalisation, pieces)
        for feature in range(model.width):
            slope = integrated.attribute(volume, still, target=feature, n_steps=steps, internal_batch_size=len(batch))
            slope_BKT = slope.detach().flatten(1, 4)[:, torch.from_numpy(pieces.voxel).to(slope.device)]
            by_piece = (slope_BKT.double().cpu().numpy() * moved_BKT).sum(axis=(0, 2))
            total[:, feature] += np.bincount(pieces.region, by_piece, minlength=len(regions))
    return total / len(starts)


def _integrated_gradients(model: Pretrained) -> Any:
    """captum's method, giving the mean gradient along the way; what it is multiplied by is divided among regions."""
    if model.preprocessing.normalisation == "frame_z":
        raise DataError("integrated gradients by region need a normalisation that is one map a voxel; use occlusion")
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise DataError("integrated gradients need captum: pip install 'fmri-scale[attribution]'") from error
    return IntegratedGradients(model.features, multiply_by_inputs=False)


def _piece_changes(moving: ClipBatch, still: ClipBatch, normalisation: str, pieces: Pieces) -> np.ndarray:
    """What each piece adds to its voxel of the volume beyond standing still, float64 (B, K, T)."""
    gain_BV, _ = affine(moving, normalisation)
    change_BTV = (moving.codes.float() - still.codes.float()) * gain_BV[:, None, :]
    return np.stack([pieces.mean @ clip.T for clip in change_BTV.double().cpu().numpy()])


def batches(model: Pretrained, run: CodedRun, starts: np.ndarray, batch_size: int) -> Iterator[ClipBatch]:
    """Clips of a run, on the model's device."""
    for begin in range(0, len(starts), max(1, batch_size)):
        part = starts[begin : begin + max(1, batch_size)]
        yield clip_batch(run, part, model.preprocessing.num_frames).to(model.device)


def _still(codes_BTV: Tensor) -> Tensor:
    """Codes with every voxel at its (rounded) mean over the clip."""
    return codes_BTV.float().mean(dim=1, keepdim=True).round().to(codes_BTV.dtype).expand_as(codes_BTV)


def volume_of(model: Pretrained, batch: ClipBatch) -> Tensor:
    """Normalised volume of a batch, [B, 1, X, Y, Z, T]."""
    place = torch.from_numpy(np.flatnonzero(model.mask).astype(np.int64)).to(model.device)
    return decode(batch, model.preprocessing.normalisation, place, model.config.image_size)


def _without_each(model: Pretrained, batch: ClipBatch, regions: Regions) -> Iterator[Tensor]:
    """Volumes of a batch without each region in turn.

    Where decoding is one map a voxel, what a region adds is taken from the volume; else the codes are decoded again.
    """
    nothing = replace(batch, codes=_still(batch.codes))
    if model.preprocessing.normalisation == "frame_z":
        for region in range(len(regions)):
            voxels = torch.from_numpy(regions.voxels(region)).to(batch.codes.device)
            codes = batch.codes.clone()
            codes[:, :, voxels] = nothing.codes[:, :, voxels]
            yield volume_of(model, replace(batch, codes=codes))
        return
    pieces = regions.pieces(model.config.image_size)
    volume = volume_of(model, batch)
    moved_BKT = torch.from_numpy(_piece_changes(batch, nothing, model.preprocessing.normalisation, pieces)).to(volume)
    for region in range(len(regions)):
        mine = torch.from_numpy(np.flatnonzero(pieces.region == region)).to(volume.device)
        place = torch.from_numpy(pieces.voxel).to(volume.device)[mine]
        without = volume.clone()
        flat_BXT = without.view(len(batch), -1, volume.shape[-1])  # one channel
        flat_BXT[:, place] -= moved_BKT[:, mine]
        yield without


@torch.inference_mode()
def _features(model: Pretrained, volume: Tensor) -> np.ndarray:
    return model.features(volume).double().cpu().numpy()
