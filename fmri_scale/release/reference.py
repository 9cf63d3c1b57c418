"""A fixed clip and what the released weights make of it, stored beside them: proof that a machine computes the same.

The clip is a formula (whole numbers over 32, so that every machine has the same bits) inside the release's mask, a
few frames long. `reference.json` holds the features; `deviation` runs the model again and compares.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmri_scale.data import reduced_mask
from fmri_scale.errors import CheckpointError
from fmri_scale.release.pretrained import Pretrained

MAX_FRAMES = 6
"Enough for a window of time to be shifted; a whole clip would only take longer."
TOLERANCE = 1e-3
"Largest relative deviation (norm of the difference over norm) between machines and kernels in float32."
BACKGROUND = -2.0


def reference_clip(model: Pretrained, num_frames: int) -> Tensor:
    """Return the clip, float32 `[1, C, X, Y, Z, num_frames]` of the model's size."""
    size = model.config.image_size
    i, j, k, t = np.ogrid[tuple(slice(n) for n in (*size, num_frames))]
    wave = (7 * i * i + 13 * j + 17 * k * (i % 5) + 29 * t * (1 + j % 3)) % 97 - 48
    clip = np.where(_brain(model.mask, size)[..., None], wave / 32, BACKGROUND).astype(np.float32)
    return torch.from_numpy(clip).expand(1, model.config.in_channels, *clip.shape).to(model.device)


def _brain(mask: np.ndarray, size: list[int]) -> np.ndarray:
    """Bring the mask to the model's volumes; all voxels where these do not divide the grid."""
    if any(grid % n for grid, n in zip(mask.shape, size, strict=True)):
        return np.ones(size, dtype=bool)
    return reduced_mask(torch.from_numpy(mask), size).numpy()


def measure(model: Pretrained) -> dict[str, Any]:
    """Return the content of `reference.json` for a model."""
    frames = min(MAX_FRAMES, model.config.num_frames)
    return {
        "what": "features (mean of the latent map over tokens) of the clip made by fmri_scale.release.reference",
        "num_frames": frames,
        "tolerance": TOLERANCE,
        "features": [float(f"{value:.8g}") for value in _features(model, frames).tolist()],
    }


def deviation(model: Pretrained, content: dict[str, Any]) -> float:
    """Return the relative deviation of this machine's features from the stored ones.

    Raises
    ------
    CheckpointError : the stored features are not those of a model of this size, or the deviation exceeds the
        tolerance.
    """
    try:
        stored = torch.tensor(content["features"], dtype=torch.float64)
        frames, tolerance = int(content["num_frames"]), float(content["tolerance"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{model.path}: its reference output cannot be read ({error})") from error
    if stored.shape != (model.width,) or not 1 <= frames <= model.config.num_frames:
        raise CheckpointError(f"{model.path}: its reference output has {stored.numel()} features, not {model.width}")
    found = _features(model, frames).double()
    apart = float((found - stored).norm() / stored.norm().clamp(min=1e-30))
    if not apart <= tolerance:
        raise CheckpointError(
            f"{model.path}: this machine computes features that deviate from the stored ones by {apart:.1e} "
            f"(at most {tolerance:.0e} expected); check the kernels, or take model.backend torch"
        )
    return apart


@torch.inference_mode()
def _features(model: Pretrained, num_frames: int) -> Tensor:
    return model.features(reference_clip(model, num_frames))[0].float().cpu()
