"""Anatomy of the synthetic cohort: tissue maps of the MNI152 template and where its networks lie.

Out: an `Anatomy` on a grid of any voxel size over the field of view of the MNI152 templates (RAS), and network maps
within its brain voxels. Nothing here is random but what is drawn from the generator given.
"""

import functools
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

ORIGIN_MM = np.array([-90.0, -126.0, -72.0])
EXTENT_MM = np.array([180.0, 216.0, 180.0])

NETWORKS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "default": ((0, -53, 27), (0, 52, 2), (-46, -66, 32), (48, -62, 32), (-24, -20, -20), (24, -20, -20)),
    "visual": ((0, -88, 2), (-18, -94, 6), (20, -92, 8), (0, -74, 10)),
    "visual_lateral": ((-44, -74, -4), (46, -72, -4)),
    "motor": ((-38, -24, 56), (40, -22, 54), (0, -16, 56)),
    "auditory": ((-54, -18, 6), (56, -16, 6)),
    "salience": ((-38, 14, 0), (40, 14, 0), (0, 22, 36)),
    "frontoparietal_left": ((-44, 28, 26), (-42, -56, 48)),
    "frontoparietal_right": ((46, 30, 26), (44, -54, 48)),
    "dorsal_attention": ((-26, -60, 54), (28, -58, 54), (-26, -4, 54), (28, -2, 54)),
    "language": ((-50, 20, 14), (-56, -42, 8), (-50, 6, -22)),
    "limbic": ((0, 34, -16), (-30, 4, -28), (30, 4, -28)),
    "basal_ganglia": ((-24, 4, 2), (24, 4, 2), (-12, -18, 8), (12, -18, 8)),
    "cerebellum": ((-26, -66, -34), (26, -66, -34), (0, -68, -22)),
}
"Centres of each network in mm, RAS. Language lies in the left hemisphere only: it shows a mirrored brain."

NETWORK_WIDTH_MM = 9.0


@dataclass(frozen=True)
class Anatomy:
    """Template on a grid; maps are float32 (brain voxels,) in C order of `brain`."""

    voxel_mm: float
    shape: tuple[int, int, int]
    affine: np.ndarray
    brain: np.ndarray
    "bool (X, Y, Z)"
    mm: np.ndarray
    "float32 (3, brain voxels): where they lie."
    grey: np.ndarray
    white: np.ndarray
    fluid: np.ndarray
    coverage: np.ndarray
    "Share of signal left where air-filled sinuses disturb the field."
    filled: np.ndarray
    "Share of a voxel that is brain: falls off at the rim."

    def smooth_field(self, rng: np.random.Generator, width_mm: float) -> np.ndarray:
        """Random field of unit variance, smooth over about `width_mm`: float32 (brain voxels,)."""
        step = width_mm / 2
        size = np.ceil(EXTENT_MM / step).astype(int) + 3
        coarse = rng.standard_normal(tuple(size))
        field = ndimage.map_coordinates(coarse, (self.mm - ORIGIN_MM[:, None]) / step + 1, order=3, mode="nearest")
        return (field / field.std()).astype(np.float32)

    def smooth_noise(self, rng: np.random.Generator) -> np.ndarray:
        """Noise of unit variance with the slight smoothness of a resampled image: float32 (brain voxels,)."""
        noise = ndimage.gaussian_filter(rng.standard_normal(self.shape, dtype=np.float32), 0.6, truncate=2.5)
        return noise[self.brain] / noise.std()

    def gradients(self, values: np.ndarray) -> np.ndarray:
        """Change of a map per mm along x, y and z: what residual motion adds; float32 (3, brain voxels)."""
        volume = np.zeros(self.shape, dtype=np.float32)
        volume[self.brain] = values
        return np.stack([g[self.brain] for g in np.gradient(volume, self.voxel_mm)])


def load_anatomy(voxel_mm: float) -> Anatomy:
    """Bring the template's tissue maps to a grid of `voxel_mm`."""
    shape = tuple(int(n) for n in np.floor(EXTENT_MM / voxel_mm + 1e-6) + 1)
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = ORIGIN_MM
    head, grey, white = (_resample(values, origin, voxel_mm, shape) for values, origin in _template())
    brain = head > 0.1
    ijk = np.argwhere(brain)
    mm = (ijk * voxel_mm + ORIGIN_MM).T.astype(np.float32)
    grey, white = grey[brain], white[brain]
    # The template has no map of fluid; it is dark in T1, and what is neither grey nor white.
    fluid = np.clip(1 - grey - white, 0, 1) * np.clip(1.4 - 1.6 * head[brain], 0, 1)
    filled = np.clip(2 * ndimage.gaussian_filter(brain.astype(np.float32), 1.5 / voxel_mm)[brain] - 0.6, 0.1, 1)
    return Anatomy(voxel_mm, shape, affine, brain, mm, grey, white, fluid, _coverage(mm), filled)  # type: ignore[arg-type]


def network_map(anatomy: Anatomy, name: str, shift_mm: np.ndarray) -> np.ndarray:
    """Where a network acts: blobs in grey matter, 1 at the strongest, float32 (brain voxels,)."""
    total = np.zeros(anatomy.mm.shape[1], dtype=np.float32)
    for centre in NETWORKS[name]:
        away = anatomy.mm - (np.array(centre) + shift_mm)[:, None]
        total += np.exp(-(away**2).sum(axis=0) / (2 * NETWORK_WIDTH_MM**2))
    total *= 0.25 + 0.75 * anatomy.grey
    return (total / total.max()).astype(np.float32)


def _coverage(mm: np.ndarray) -> np.ndarray:
    """Signal drops above the nasal sinus and beside the ear canals."""
    lost = np.zeros(mm.shape[1])
    for centre, width, depth in (((0, 38, -24), 11, 0.7), ((-52, -18, -32), 9, 0.4), ((52, -18, -32), 9, 0.4)):
        lost += depth * np.exp(-((mm - np.array(centre)[:, None]) ** 2).sum(axis=0) / (2 * width**2))
    return (1 - np.clip(lost, 0, 0.9)).astype(np.float32)


def petalia(mm: np.ndarray) -> np.ndarray:
    """Share of signal, float32 (N,) at places (3, N) in mm: the left frontal and right occipital poles reach less far.

    The templates are symmetric, brains are not (LeMay 1976): without this no one could see that a brain was mirrored.
    """
    lost = np.zeros(mm.shape[1])
    for centre in ((-24, 64, 2), (22, -98, -2)):
        lost += 0.5 * np.exp(-((mm - np.array(centre)[:, None]) ** 2).sum(axis=0) / (2 * 14.0**2))
    return (1 - lost).astype(np.float32)


def _resample(values: np.ndarray, origin: np.ndarray, voxel_mm: float, shape: tuple[int, ...]) -> np.ndarray:
    """A 1 mm map on the grid, smoothed to its voxels."""
    smooth = ndimage.gaussian_filter(values, 0.4 * voxel_mm)
    axes = [ORIGIN_MM[a] + voxel_mm * np.arange(shape[a]) - origin[a] for a in range(3)]
    return ndimage.map_coordinates(smooth, np.stack(np.meshgrid(*axes, indexing="ij")), order=1, mode="constant")


@functools.lru_cache(maxsize=1)
def _template() -> list[tuple[np.ndarray, np.ndarray]]:
    """T1, grey and white matter of nilearn's MNI152 template at 1 mm, each with its origin."""
    from nilearn import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = [
            datasets.load_mni152_template(resolution=1),
            datasets.load_mni152_gm_template(resolution=1),
            datasets.load_mni152_wm_template(resolution=1),
        ]
    return [(np.asarray(image.dataobj, dtype=np.float32), image.affine[:3, 3]) for image in images]
