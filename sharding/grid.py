"""From an image's own voxels to the canonical grid, through its affine.

A `Sampler` says, for each wanted voxel of the grid, which voxels of the image it is made of. An image whose voxels lie
on the grid's own points (any axis order, any flip) is cropped and padded exactly and never interpolated; any other is
resampled, trilinearly for signals and by nearest neighbour for labels, and only at the wanted voxels. Images are
flattened in file order (x fastest); time plays no part here.

The same brain stored with other axis orders or flips gives the same bits: coordinates are computed in the image's
closest RAS frame, whose origin is rounded to a micrometre-scale step because a flip recomputes it in float32.
"""

import functools
import threading
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import sparse

from sharding.errors import InputError
from sharding.format import GRID_AFFINE, GRID_SHAPE

ON_POINT_VOXELS = 2e-3
"Largest distance from a voxel centre (in the image's voxels) that still counts as lying on it."

ORIGIN_DECIMALS_MM = 3
LINEAR_DECIMALS_MM = 6

UNSEEN = 1e-9
"A weight that no float32 sum sees."

FRAMES_AT_A_TIME = 16
"Frames interpolated together: a voxel's values then fill a cache line."
BLOCK_VOXELS = 8192
"Voxels interpolated together."
PIECE_VOXELS = 2048
"Source voxels put side by side together: few enough to stay in cache."


@dataclass(frozen=True)
class Frame:
    """An image's space, seen in its closest RAS axis order."""

    shape: tuple[int, int, int]
    "Voxels along the file's axes."
    ras_shape: tuple[int, int, int]
    "Voxels along right, anterior, superior."
    axis: tuple[int, int, int]
    "RAS axis of each file axis."
    flipped: tuple[bool, bool, bool]
    "Whether the file axis runs against its RAS axis."
    to_voxel: np.ndarray
    "float64 (4, 4): mm to voxel in RAS order."

    def flat_index(self, ras_voxel: np.ndarray) -> np.ndarray:
        """int64 (N,) position in the file (x fastest) of RAS voxels int64 (3, N)."""
        index = np.zeros(ras_voxel.shape[1], dtype=np.int64)
        for file_axis in (2, 1, 0):
            size = self.shape[file_axis]
            along = ras_voxel[self.axis[file_axis]]
            index = index * size + (size - 1 - along if self.flipped[file_axis] else along)
        return index


@dataclass(frozen=True)
class Sampler:
    """How to make N wanted grid voxels from an image of `num_source` voxels."""

    exact: bool
    "Taken as they are (cropped and padded), not interpolated."
    take: np.ndarray
    "int64 (N,): source voxel of each wanted voxel (the nearest one where not exact); -1 outside the image."
    weights: sparse.csr_array | None
    "float32 (N, num_source) trilinear weights; None where exact."

    @property
    def outside(self) -> float:
        """Fraction of wanted voxels that the image does not reach; they become 0."""
        return float(np.mean(self.take < 0))

    def used(self, num_source: int) -> np.ndarray:
        """Which source voxels take part: bool (num_source,)."""
        used = np.zeros(num_source, dtype=bool)
        used[self.take[self.take >= 0] if self.weights is None else self.weights.indices] = True
        return used

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Values (num_source,) at the nearest source voxel: (N,), 0 outside."""
        return np.where(self.take >= 0, values[np.maximum(self.take, 0)], values.dtype.type(0))

    def __call__(self, frames: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Bring frames float32 (F, num_source) to the wanted voxels: float32 (F, N) (in `out`, if given), 0 outside."""
        out = np.empty((len(frames), self.take.size), dtype=frames.dtype) if out is None else out
        if self.weights is not None:
            for first in range(0, len(frames), FRAMES_AT_A_TIME):
                self._interpolate(frames[first : first + FRAMES_AT_A_TIME], out[first : first + FRAMES_AT_A_TIME])
            return out
        take, beyond = self._taken
        for frame, row in zip(frames, out, strict=True):
            np.take(frame, take, out=row, mode="clip")  # the mode that needs no check of each position
            row[beyond] = 0
        return out

    @functools.cached_property
    def _taken(self) -> tuple[np.ndarray, np.ndarray]:
        """Source voxels with any in place of those outside, and the wanted voxels that are outside."""
        return np.maximum(self.take, 0), np.flatnonzero(self.take < 0)

    @functools.cached_property
    def _blocks(self) -> tuple[np.ndarray, list[tuple[slice, sparse.csr_array]]]:
        """Source voxels with a weight, and the weights on those alone, in blocks of rows that stay in cache."""
        assert self.weights is not None
        used = np.flatnonzero(self.used(self.weights.shape[1]))
        place = np.zeros(self.weights.shape[1], dtype=np.int32)
        place[used] = np.arange(used.size, dtype=np.int32)
        data, indices, starts = self.weights.data, place[self.weights.indices], self.weights.indptr
        blocks = []
        for first in range(0, self.take.size, BLOCK_VOXELS):
            rows = slice(first, min(first + BLOCK_VOXELS, self.take.size))
            part = slice(starts[rows.start], starts[rows.stop])
            own = starts[rows.start : rows.stop + 1] - starts[rows.start]
            weights = sparse.csr_array((data[part], indices[part], own), shape=(rows.stop - first, used.size))
            blocks.append((rows, weights))
        return used, blocks

    def _interpolate(self, frames: np.ndarray, out: np.ndarray) -> None:
        used, blocks = self._blocks
        num_frames = len(frames)
        width = num_frames + -num_frames % 4  # processors add four at once
        voxels = _side_by_side(used.size * width).reshape(used.size, width)
        voxels[:, num_frames:] = 0
        for first in range(0, used.size, PIECE_VOXELS):
            piece = slice(first, first + PIECE_VOXELS)
            voxels[piece, :num_frames] = frames.take(used[piece], axis=1, mode="clip").T
        for rows, weights in blocks:
            out[:, rows] = (weights @ voxels).T[:num_frames]


_scratch = threading.local()
"Of each thread, since runs of one space share their sampler."


def _side_by_side(size: int) -> np.ndarray:
    """Memory of this thread, float32 (size,), used again and again: new memory costs more than to fill it."""
    if getattr(_scratch, "values", np.empty(0)).size < size:
        _scratch.values = np.empty(size, dtype=np.float32)
    return _scratch.values[:size]


def image_frame(shape: tuple[int, ...], affine: np.ndarray, name: str) -> Frame:
    """Check an image's affine and express it in RAS order.

    Parameters
    ----------
    shape
        Voxels along the image's three axes.
    affine
        (4, 4) voxel to mm.
    name
        File, for the message.

    Raises
    ------
    InputError
        The affine holds NaN or Inf, is singular, or has voxels of an absurd size.
    """
    affine = np.ascontiguousarray(affine, dtype=np.float64)
    key = tuple(shape), affine.tobytes()
    if key not in _known_frames:
        frame = _image_frame(shape, affine, name)
        if len(_known_frames) >= MAX_KNOWN_FRAMES:
            return frame
        _known_frames[key] = frame
    return _known_frames[key]


MAX_KNOWN_FRAMES = 4096

_known_frames: dict[tuple[tuple[int, ...], bytes], Frame] = {}
"Spaces met before, as runs of a dataset share theirs."


def _image_frame(shape: tuple[int, ...], affine: np.ndarray, name: str) -> Frame:
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(f"{name}: affine has NaN or Inf ({affine[:3].tolist()}); repair its sform or qform")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    # A rotation with the voxel sizes divided out has determinant +-1; shears down to 0.01 are let through.
    if not (sizes > 0).all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 0.01:
        raise InputError(f"{name}: affine is singular ({affine[:3, :3].tolist()}); repair its sform or qform")
    if sizes.min() < 0.1 or sizes.max() > 100:
        raise InputError(f"{name}: voxels of {_sizes(sizes)} mm (0.1 to 100 expected); repair its sform or qform")
    orientation = nib.orientations.io_orientation(affine)
    axis = tuple(int(a) for a in orientation[:, 0])
    flipped = tuple(bool(d < 0) for d in orientation[:, 1])
    ras = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    ras[:3, :3] = np.round(ras[:3, :3], LINEAR_DECIMALS_MM)
    ras[:3, 3] = np.round(ras[:3, 3], ORIGIN_DECIMALS_MM)
    ras_shape = tuple(shape[axis.index(a)] for a in range(3))
    return Frame(tuple(shape), ras_shape, axis, flipped, np.linalg.inv(ras + 0.0))  # type: ignore[arg-type]


def grid_sampler(frame: Frame, wanted: np.ndarray) -> Sampler:
    """Plan how the wanted voxels of the canonical grid are made from an image.

    Within half a voxel of its outermost centres an image has its border's value; farther out it has none (0).

    Parameters
    ----------
    frame
        The image's space.
    wanted
        int64 (N,): positions in the flattened (C order) grid.
    """
    return _planned(_Key(frame, wanted))


class _Key:
    """An image's space and wanted voxels, equal where they hold the same: runs of a dataset share their plan."""

    def __init__(self, frame: Frame, wanted: np.ndarray) -> None:
        self.frame, self.wanted = frame, wanted
        space = (frame.shape, frame.ras_shape, frame.axis, frame.flipped)
        self._content = (*space, frame.to_voxel.tobytes(), wanted.tobytes())

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._content == other._content


@functools.lru_cache(maxsize=1)
def _planned(key: _Key) -> Sampler:
    frame, wanted = key.frame, key.wanted
    coordinates = grid_coordinates(frame, wanted)
    inside = np.ones(wanted.size, dtype=bool)
    for axis, size in enumerate(frame.ras_shape):
        inside &= (coordinates[axis] >= -0.5 - ON_POINT_VOXELS) & (coordinates[axis] <= size - 0.5 + ON_POINT_VOXELS)
    # A tie between two voxels is broken downwards in RAS, so that flipped copies choose alike.
    nearest = np.floor(coordinates + 0.5 - ON_POINT_VOXELS / 2).astype(np.int64)
    distance = np.abs(coordinates - np.round(coordinates)).max(initial=0.0)
    exact = bool(distance < ON_POINT_VOXELS)
    if exact:
        nearest = np.round(coordinates).astype(np.int64)
    limits = np.array(frame.ras_shape)[:, None] - 1
    if exact:
        inside &= ((nearest >= 0) & (nearest <= limits)).all(axis=0)
    take = np.where(inside, frame.flat_index(np.clip(nearest, 0, limits)), -1)
    return Sampler(exact, take, None if exact else _trilinear(frame, coordinates, inside))


def grid_coordinates(frame: Frame, wanted: np.ndarray) -> np.ndarray:
    """float64 (3, N): where the wanted grid voxels lie in the image, in RAS voxels."""
    grid = np.stack(np.unravel_index(wanted, GRID_SHAPE)).astype(np.float64)
    to_voxel = frame.to_voxel @ GRID_AFFINE
    # Written out, not a matrix product: the same bits whatever the linear algebra library.
    return np.stack(
        [
            to_voxel[a, 0] * grid[0] + to_voxel[a, 1] * grid[1] + to_voxel[a, 2] * grid[2] + to_voxel[a, 3]
            for a in range(3)
        ]
    )


def _trilinear(frame: Frame, coordinates: np.ndarray, inside: np.ndarray) -> sparse.csr_array:
    limits = np.array(frame.ras_shape)[:, None] - 1
    clamped = np.clip(coordinates, 0, limits)
    low = np.minimum(np.floor(clamped).astype(np.int64), np.maximum(limits - 1, 0))
    upper = clamped - low
    indices, weights = [], []
    for corner in np.ndindex(2, 2, 2):
        step = np.array(corner)[:, None]
        indices.append(frame.flat_index(np.minimum(low + step, limits)))
        weights.append(np.where(step, upper, 1 - upper).prod(axis=0) * inside)
    num_wanted, num_source = inside.size, int(np.prod(frame.shape))
    # Corners stay in RAS order within a row, so that sums of flipped copies have the same bits.
    values = np.stack(weights, axis=1)
    seen = values > UNSEEN  # on a point of the lattice, the other corners have none
    return sparse.csr_array(
        (
            values[seen].astype(np.float32),
            np.stack(indices, axis=1)[seen].astype(np.int32),
            np.concatenate([[0], np.cumsum(seen.sum(axis=1))]).astype(np.int32),
        ),
        shape=(num_wanted, num_source),
    )


def axis_codes(affine: np.ndarray) -> str:
    """Axis codes of an affine, for example LAS."""
    return "".join(code or "?" for code in nib.orientations.aff2axcodes(affine))


def _sizes(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
