"""Made-up runs of the size and compressibility of real ones, for benchmarks/sharding_speed.py.

As HCP's: float32, 2 mm, stored LAS, 0 outside the brain, gzip level 6 in one stream; a quarter of the values are brain,
their mantissas noise, and the file is a quarter of its raw size. In the brain: an anatomical level, a slow wave per
region, white noise of 2.5 per cent. The other kind lies on a 2.4 mm lattice with TR 2.0, so everything is resampled.
"""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.mask import brain_mask

LATTICES = {"2mm": (2.0, (91, 109, 91), 0.8), "2.4mm": (2.4, (76, 91, 76), 2.0)}
"Voxel edge in mm, voxels, TR in s; the corner voxel is at (-90, -126, -72) mm before it is stored right to left."


def make_run(folder: Path, kind: str, frames: int, level: int = 6) -> Path:
    """Write a run, once; return its file."""
    path = folder / f"sub-{kind.replace('.', '')}x{frames}_task-rest_space-MNI152NLin6Asym_bold.nii.gz"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    edge, shape, tr = LATTICES[kind]
    affine = np.diag([-edge, edge, edge, 1.0])
    affine[:3, 3] = [-90 + edge * (shape[0] - 1), -126, -72]
    image = nib.Nifti1Image(np.empty((*shape, 1), dtype=np.float32), affine)
    image.header.set_data_shape((*shape, frames))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = tr
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=4)
    image.header["vox_offset"] = 352
    brain, level_of = _anatomy(shape, affine)
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, level_of.size).astype(np.float32)
    working = path.with_suffix(".tmp")
    with working.open("wb") as raw, gzip.GzipFile("", "wb", level, raw, mtime=0) as file:
        file.write(image.header.binaryblock + bytes(4))
        for t in range(frames):
            wave = 1 + 0.01 * np.sin(2 * np.pi * 0.03 * tr * t + phase)
            volume = np.zeros(int(np.prod(shape)), dtype="<f4")
            volume[brain] = level_of * (wave + 0.025 * rng.standard_normal(level_of.size, dtype=np.float32))
            file.write(volume.tobytes())
    working.rename(path)
    return path


def _anatomy(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brain voxels in file order (positions) and the level of each."""
    ijk = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape, order="F"))
    mm = affine[:3, :3] @ ijk + affine[:3, 3:]
    grid = np.round((mm - GRID_AFFINE[:3, 3:]) / 2).astype(int)
    inside = ((grid >= 0) & (grid < 96)).all(axis=0)
    flat = np.ravel_multi_index(tuple(np.clip(grid, 0, 95)), GRID_SHAPE)
    brain = np.flatnonzero(inside & brain_mask(dilated=False).ravel()[flat])
    x, y, z = mm[:, brain]
    level = 9000 + 1500 * np.sin(x / 17) * np.cos(y / 23) * np.sin(z / 19) + 8 * z
    return brain, level.astype(np.float32)
