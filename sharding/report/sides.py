"""Do all runs have left and right on the same side, and does every brain lie where the MNI152 brain lies?

Sides: no brain is symmetric (poles, sinuses, vessels). A run's asymmetry is its mean image less the mirror image; those
of runs stored alike correlate, those of mirrored runs anticorrelate. Runs are divided into two camps by the leading
eigenvector of their correlations; each is then compared with all others, turned into one camp. This tells which runs
disagree with most of the corpus, not which camp is right: that takes eyes. Shifts: a run's image is correlated with the
template's tissues in EPI contrast, moved by up to REACH_VOXELS along each axis; the best place is the shift.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.mask import brain_mask
from sharding.phantom_anatomy import ORIGIN_MM, load_anatomy

SMOOTH_VOXELS = 2.0
"Width over which asymmetry is looked at: anatomy, not noise."
REACH_VOXELS = 5
SURE = 0.15
"Correlation from which a run's side is told; below, it has too little in common with the others."
SHIFTED_MM = 4.0
"Shift from which a run or dataset is told."


@dataclass(frozen=True)
class Sides:
    """What the asymmetry of runs says.

    Attributes
    ----------
    scores
        float64 (N,): correlation of each run's asymmetry with that of the others; negative against the larger camp.
    undecided
        The camps are of nearly one size, so that neither is the odd one.
    """

    scores: np.ndarray
    undecided: bool


def compare_sides(asymmetries: np.ndarray) -> Sides:
    """Compare runs by their asymmetry, float32 (N, voxels); one run alone has score 0."""
    if len(asymmetries) < 2:
        return Sides(np.zeros(len(asymmetries)), undecided=False)
    vectors = asymmetries - asymmetries.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    alike = (vectors @ vectors.T).astype(np.float64)
    np.fill_diagonal(alike, 0.0)
    camp = np.where(np.linalg.eigh(alike)[1][:, -1] < 0, -1.0, 1.0)
    others = (camp[:, None] * vectors).sum(axis=0) - camp[:, None] * vectors
    scores = np.einsum("nv,nv->n", vectors, others) / np.maximum(np.linalg.norm(others, axis=1), 1e-12)
    told = np.abs(scores) >= SURE
    against = int((scores[told] < 0).sum())
    if 2 * against > told.sum():
        scores, against = -scores, int(told.sum()) - against
    return Sides(scores, undecided=against > 0.4 * told.sum())


def asymmetry_of(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image less mirror image, smooth, right of the middle where both sides are stored: float32 (voxels,)."""
    both = mask & mirrored(mask)
    both[:49] = False
    smooth = ndimage.gaussian_filter(np.where(mask, image, 0).astype(np.float32), SMOOTH_VOXELS)
    return (smooth - mirrored(smooth))[both][::2]


def mirrored(volume: np.ndarray) -> np.ndarray:
    """Exchange left and right about x = 0: voxel i lies at -96 + 2 i mm, so i becomes 96 - i."""
    out = np.zeros_like(volume)
    out[1:] = volume[:0:-1]
    return out


def shift_of(image: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """How far an image lies from the template along x, y and z, in mm; at most REACH_VOXELS of 2 mm.

    Axis after axis is fitted with the others where they fitted last, three times over.
    """
    picked = np.flatnonzero(mask)[::4]
    values, template = image.ravel()[picked], reference().ravel()
    strides = np.array([GRID_SHAPE[1] * GRID_SHAPE[2], GRID_SHAPE[2], 1])
    steps = np.arange(-REACH_VOXELS, REACH_VOXELS + 1)
    place, exact = np.zeros(3, dtype=np.int64), np.zeros(3)
    for axis in (0, 1, 2) * 3:
        fits = np.zeros(len(steps))
        for number, place[axis] in enumerate(steps):
            # Where the rim of the grid is passed, the template is empty on both sides.
            fits[number] = _correlation(values, template.take(picked - int(place @ strides), mode="clip"))
        place[axis] = steps[int(fits.argmax())] if fits.any() else 0
        exact[axis] = _peak(steps, fits) * float(GRID_AFFINE[axis, axis])
    return float(exact[0]), float(exact[1]), float(exact[2])


@functools.lru_cache(maxsize=1)
def reference() -> np.ndarray:
    """The template's tissues as bright as EPI has them: float32 (96, 96, 96), 0 outside the brain."""
    anatomy = load_anatomy(2.0)
    out = np.zeros(GRID_SHAPE, dtype=np.float32)
    place = np.argwhere(anatomy.brain) + ((ORIGIN_MM - GRID_AFFINE[:3, 3]) / 2).round().astype(int)
    fits = ((place >= 0) & (place < GRID_SHAPE)).all(axis=1)
    bright = (anatomy.grey + 0.8 * anatomy.white + 1.35 * anatomy.fluid) * anatomy.filled
    out[tuple(place[fits].T)] = bright[fits]
    return np.where(brain_mask(), out, 0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _peak(steps: np.ndarray, fits: np.ndarray) -> float:
    """Place of the largest fit, between steps by a parabola; 0 where nothing fits."""
    best = int(fits.argmax())
    if not fits.any():
        return 0.0
    if best in (0, len(steps) - 1):
        return float(steps[best])
    below, here, above = fits[best - 1 : best + 2]
    bend = below - 2 * here + above
    return float(steps[best]) + (0.5 * float(below - above) / float(bend) if bend < 0 else 0.0)
