"""Clips as the loader hands them over, int8 codes of the brain's voxels, and which of their tokens are hidden.

`embed` reads its input and `loss` its targets from these codes; a volume of floats never exists. The value of a voxel
is (offset + step * code) * gain + shift, with offset and step by voxel, gain and shift by clip; voxels outside the
brain have the clip's `outside` value. This file is the definition in torch; `clips_jit.py` is the same in Triton.

Legend: B clips, T frames, V brain voxels, X Y Z the image, D H W tokens along x y z, M = D*H*W positions,
N = M*T tokens in natural order (frames fastest), P = px*py*pz values of a patch, U units, K patches of a list: those
positions (int32, each once) that have tokens, where not all have.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.kept import kept
from fmri_scale.kernels.mask import unit_mask
from fmri_scale.kernels.windows import Axes

Size = tuple[int, int, int]
ONE: Axes = (1, 1, 1, 1)


class CodedClips(NamedTuple):
    """A batch of clips in codes.

    Attributes
    ----------
    codes : int8 `(B, T, V)`.
    scale : `(B, 2, V)`, float16 or float32: offset and step of each voxel.
    gain, shift, outside : float32 `(B,)`.
    lookup : int32 `(X * Y * Z,)`: which of the V voxels stands at each place of the image (C order), -1 outside.
    image : voxels along x, y, z.
    patch : voxels of a patch along x, y, z; divides the image.
    """

    codes: Tensor
    scale: Tensor
    gain: Tensor
    shift: Tensor
    outside: Tensor
    lookup: Tensor
    image: Size
    patch: Size

    @property
    def grid(self) -> Axes:
        """Tokens along x, y, z and time."""
        x, y, z = (voxels // patch for voxels, patch in zip(self.image, self.patch, strict=True))
        return x, y, z, self.codes.shape[1]

    def check(self) -> None:
        """Raise ValueError, naming the first tensor whose shape or dtype does not fit the others."""
        batch, _, voxels = self.codes.shape
        if any(v % p for v, p in zip(self.image, self.patch, strict=True)):
            raise ValueError(f"image {self.image} is not whole patches of {self.patch}")
        shapes = {"scale": (batch, 2, voxels), "gain": (batch,), "shift": (batch,), "outside": (batch,)}
        shapes["lookup"] = (math.prod(self.image),)
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} is {tuple(getattr(self, name).shape)}: expected {shape}")
        for name, dtype in (("codes", torch.int8), ("lookup", torch.int32)):
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"{name} is {getattr(self, name).dtype}: expected {dtype}")


class Hidden(NamedTuple):
    """Which tokens are hidden: those of `given`, or of the units drawn by key, or (with neither) none.

    Attributes
    ----------
    given : bool `(B, N)`.
    epoch, clip_ids : int64 `(B,)`, with `seed` the key of each clip's draw (`fmri_scale.kernels.mask`).
    seed : seed of the run.
    num_hidden : units hidden in each clip.
    unit : tokens of a unit along d, h, w, t; units raster from the grid's corner and are cut at its end.
    """

    given: Tensor | None = None
    epoch: Tensor | None = None
    clip_ids: Tensor | None = None
    seed: int = 0
    num_hidden: int = 0
    unit: Axes = ONE

    def check(self, batch: int, grid: Axes) -> None:
        """Raise ValueError where the mask does not fit clips of these tokens."""
        if self.given is not None and self.clip_ids is not None:
            raise ValueError("hidden tokens are both given and drawn: expected one of them")
        if self.given is not None and tuple(self.given.shape) != (batch, math.prod(grid)):
            raise ValueError(f"hidden is {tuple(self.given.shape)}: expected {(batch, math.prod(grid))}")
        if self.clip_ids is not None:
            if self.epoch is None or self.clip_ids.shape != (batch,) or self.epoch.shape != (batch,):
                raise ValueError(f"epoch and clip_ids: expected int64 of shape {(batch,)} each")
            units = num_units(grid, self.unit)
            if not 0 <= self.num_hidden <= units:
                raise ValueError(f"{self.num_hidden} of {units} units: expected 0 to {units}")


def normalise(
    normalisation: str,
    scale_B2V: Tensor,
    unit_B: Tensor,
    mean_B: Tensor,
    sd_B: Tensor,
    background_B: Tensor,
    stats_B2V: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scale, gain, shift and outside of `CodedClips` for a normalisation.

    Parameters
    ----------
    normalisation : str
        `run_z` ((x - mean) / sd of the run, outside the run's background), `voxel_z` (by each voxel's own mean and
        sd, from `stats_B2V`; outside 0) or `none` (x itself; outside 0).
    scale_B2V, unit_B, mean_B, sd_B, background_B, stats_B2V : Tensor
        As stored in a corpus: x = unit * (offset + step * code); stats are the normalised offset and sd / unit.

    Raises
    ------
    ConfigError
        For a normalisation that is not one affine map a voxel, or voxel_z without statistics.
    """
    one, zero = torch.ones_like(unit_B), torch.zeros_like(unit_B)
    if normalisation == "run_z":
        return scale_B2V, unit_B / sd_B, -mean_B / sd_B, background_B
    if normalisation == "none":
        return scale_B2V, unit_B, zero, zero
    if normalisation == "voxel_z":
        if stats_B2V is None:
            raise ConfigError("the batch has no voxel statistics: it was read with another data.normalisation")
        offset, sd = stats_B2V.float().unbind(1)
        step = torch.where(sd > 0, scale_B2V[:, 1].float() / sd, 0.0)
        return torch.stack([offset, step], 1), one, zero, zero
    raise ConfigError(
        f"data.normalisation={normalisation!r}: kernels read codes as run_z, voxel_z or none; decode the volume instead"
    )


def voxel_lookup(mask_index_V: Tensor, image: Size) -> Tensor:
    """Return `CodedClips.lookup` of brain voxels at the flat places `mask_index_V`, int64 `(V,)`."""
    lookup = mask_index_V.new_full((math.prod(image),), -1, dtype=torch.int32)
    lookup[mask_index_V] = torch.arange(len(mask_index_V), dtype=torch.int32, device=lookup.device)
    return lookup


def patch_places(clips: CodedClips) -> Tensor:
    """Return which of the V voxels is each value of each patch, int32 `(M, P)`, -1 outside the brain."""
    d, h, w, _ = clips.grid
    px, py, pz = clips.patch
    return clips.lookup.view(d, px, h, py, w, pz).permute(0, 2, 4, 1, 3, 5).reshape(d * h * w, px * py * pz)


def patch_values(clips: CodedClips, clip: int, places_MP: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of some positions' patches in every frame of one clip, `(T, positions, P)` in `dtype`."""
    return patch_series(clips, clip, clips.codes[clip].t(), places_MP, dtype).permute(2, 0, 1)


def patch_series(clips: CodedClips, clip: int, codes_VT: Tensor, places_MP: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `patch_values` with the frames last, `(positions, P, T)`, of a clip's codes by voxel.

    A voxel's frames beside each other are gathered as a whole, which is fifteen times faster.
    """
    flat = places_MP.flatten()
    brain = flat >= 0
    rows = flat.clamp(min=0)
    offset, step = clips.scale[clip].index_select(1, rows).to(dtype).unbind(0)
    gain, shift, outside = (v[clip].to(dtype) for v in (clips.gain, clips.shift, clips.outside))
    offset, step = torch.where(brain, offset * gain + shift, outside), torch.where(brain, step * gain, 0.0)
    codes = codes_VT.index_select(0, rows).to(dtype)
    return torch.addcmul(offset.unsqueeze(1), step.unsqueeze(1), codes).view(*places_MP.shape, codes.shape[1])


def check_patches(patches_K: Tensor | None, grid: Axes) -> int:
    """Return how many positions have tokens; ValueError where a list of them does not fit the grid."""
    positions = math.prod(grid[:3])
    if patches_K is None:
        return positions
    if patches_K.dtype != torch.int32 or patches_K.ndim != 1 or not 0 < len(patches_K) <= positions:
        raise ValueError(
            f"patches is {patches_K.dtype} {tuple(patches_K.shape)}: expected torch.int32, one to {positions} positions"
        )
    return len(patches_K)


def pick(values: Tensor, patches_K: Tensor | None, axis: int) -> Tensor:
    """Return the listed positions of values whose axis `axis` is M; all, as they are, without a list."""
    return values if patches_K is None else values.index_select(axis, patches_K)


def pick_tokens(values_BN: Tensor, patches_K: Tensor | None, frames: int) -> Tensor:
    """Return the tokens `(B, K*T, ...)` of the listed positions; all, as they are, without a list."""
    if patches_K is None:
        return values_BN
    return values_BN.unflatten(1, (-1, frames)).index_select(1, patches_K).flatten(1, 2)


def places_in_list(patches_K: Tensor, positions: int) -> Tensor:
    """Return where each position stands in a list of patches, int32 `(M,)`, -1 where it does not."""
    number_K = torch.arange(len(patches_K), dtype=torch.int32, device=patches_K.device)
    found_M = torch.full((positions,), -1, dtype=torch.int32, device=patches_K.device)
    return found_M.index_copy_(0, patches_K.long(), number_K)


def num_units(grid: Axes, unit: Axes) -> int:
    """Return how many units a grid holds, the cut ones included."""
    return math.prod([-(-n // size) for n, size in zip(grid, unit, strict=True)])


@kept(32)
def unit_of_token(grid: Axes, unit: Axes, device: torch.device) -> Tensor:
    """Return the unit each token lies in, int64 `(N,)`; do not write to it."""
    number = torch.zeros((), dtype=torch.int64)
    for n, size in zip(grid, unit, strict=True):
        number = number.unsqueeze(-1) * -(-n // size) + torch.arange(n) // size
    return number.flatten().to(device)


@kept(32)
def slot_of_token(grid: Axes, slots: Axes, device: torch.device) -> Tensor:
    """Return the place of each token in its (unshifted) window of `slots`, int64 `(N,)`; do not write to it."""
    number = torch.zeros((), dtype=torch.int64)
    for n, size in zip(grid, slots, strict=True):
        number = number.unsqueeze(-1) * size + torch.arange(n) % size
    return number.flatten().to(device)


def brain_values(clips: CodedClips) -> Tensor:
    """Return how many values of the patch at each position lie in the brain, int32 `(M,)`."""
    d, h, w, _ = clips.grid
    px, py, pz = clips.patch
    brain = (clips.lookup >= 0).view(d, px, h, py, w, pz)
    return brain.sum((1, 3, 5), dtype=torch.int32).flatten()


def hidden_tokens(hidden: Hidden, batch: int, grid: Axes, device: torch.device, backend: str = "auto") -> Tensor:
    """Return which tokens are hidden, bool `(B, N)`."""
    if hidden.given is not None:
        return hidden.given
    if hidden.clip_ids is None or hidden.epoch is None:
        return torch.zeros(batch, math.prod(grid), dtype=torch.bool, device=device)
    units = num_units(grid, hidden.unit)
    drawn = unit_mask(hidden.seed, hidden.epoch, hidden.clip_ids, units, hidden.num_hidden, backend=backend)
    return drawn[:, unit_of_token(grid, hidden.unit, device)]


def remembered_tokens(hidden: Hidden, batch: int, grid: Axes, device: torch.device) -> Tensor:
    """Return `hidden_tokens`; on a CPU drawn once for all operators of a step that ask. Do not write to it."""
    if hidden.clip_ids is None or hidden.epoch is None or device.type != "cpu":
        return hidden_tokens(hidden, batch, grid, device)
    keys = (tuple(hidden.epoch.tolist()), tuple(hidden.clip_ids.tolist()))
    return _drawn_tokens(*keys, hidden.seed, hidden.num_hidden, hidden.unit, grid)


@kept(2)
def _drawn_tokens(
    epoch: tuple[int, ...], clip_ids: tuple[int, ...], seed: int, num_hidden: int, unit: Axes, grid: Axes
) -> Tensor:
    hidden = Hidden(None, torch.tensor(epoch), torch.tensor(clip_ids), seed, num_hidden, unit)
    return hidden_tokens(hidden, len(epoch), grid, torch.device("cpu"), "torch")
