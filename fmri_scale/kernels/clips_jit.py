"""Codes, patches and hidden tokens inside Triton kernels: what `clips.py` defines, by index arithmetic.

Kernels take the geometry as constant tuples: GRID (tokens D, H, W, T), IMAGE and PATCH (voxels), UNIT (tokens of a
mask's unit). MODE says how tokens are hidden: NONE, GIVEN in a bool tensor, or DRAWN by the keyed bijection.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.clips import CodedClips, Hidden, num_units
from fmri_scale.kernels.mask.triton import network, permute, unit_keys
from fmri_scale.kernels.windows import Axes

NONE: tl.constexpr = tl.constexpr(0)
GIVEN: tl.constexpr = tl.constexpr(1)
DRAWN: tl.constexpr = tl.constexpr(2)


def clip_arguments(clips: CodedClips) -> tuple[torch.Tensor | int, ...]:
    """Arguments of a launch: codes, scale, gain, shift, outside, lookup, V."""
    tensors = (clips.codes, clips.scale, clips.gain, clips.shift, clips.outside, clips.lookup)
    return *(v.contiguous() for v in tensors), clips.codes.shape[2]


def hidden_arguments(hidden: Hidden, stand_in: torch.Tensor) -> tuple[torch.Tensor | int, ...]:
    """Arguments of a launch: hidden, epoch, clip_ids, seed, count; `stand_in` for the tensors that are not there."""
    given = stand_in if hidden.given is None else hidden.given.contiguous().view(torch.uint8)
    epoch = stand_in if hidden.epoch is None else hidden.epoch.contiguous()
    clip_ids = stand_in if hidden.clip_ids is None else hidden.clip_ids.contiguous()
    return given, epoch, clip_ids, hidden.seed, hidden.num_hidden


def layout(clips: CodedClips, hidden: Hidden) -> dict[str, Any]:
    """Constants of a launch."""
    return {"IMAGE": tuple(clips.image), "PATCH": tuple(clips.patch), **hidden_layout(hidden, clips.grid)}


def hidden_layout(hidden: Hidden, grid: Axes) -> dict[str, Any]:
    """Those of them that say which tokens of a grid are hidden."""
    mode = DRAWN if hidden.clip_ids is not None else NONE if hidden.given is None else GIVEN
    units = num_units(grid, hidden.unit) if hidden.clip_ids is not None else 1
    return {"GRID": tuple(grid), "UNIT": tuple(hidden.unit), "MODE": mode.value, **network(units)}


def refuse_float64(tensor: torch.Tensor) -> None:
    """Raise ConfigError for float64: the tensor cores have none, and fewer digits than asked for are no answer."""
    if tensor.dtype == torch.float64:
        raise ConfigError("kernel backend triton: it computes in float32 and bfloat16; take torch for float64")


@triton.jit
def token_of(row, list_ptr, GRID: tl.constexpr, LISTED: tl.constexpr):
    """Tokens of the grid that rows of tokens are: the rows themselves, or where LISTED is not 0 those of so many
    listed patches. Rows beyond the end must not be asked for."""
    if LISTED > 0:
        return tl.load(list_ptr + row // GRID[3]) * GRID[3] + row % GRID[3]
    else:
        return row


@triton.jit
def row_of(token, ok, place_ptr, GRID: tl.constexpr, LISTED: tl.constexpr):
    """The other way, by each position's place in the list: rows, and which of `ok` have one."""
    if LISTED > 0:
        place = tl.load(place_ptr + token // GRID[3], mask=ok, other=-1)
        return place * GRID[3] + token % GRID[3], ok & (place >= 0)
    else:
        return token, ok


@triton.jit
def place_of(token, GRID: tl.constexpr):
    """Coordinates d, h, w, t of tokens."""
    t = token % GRID[3]
    position = token // GRID[3]
    w = position % GRID[2]
    h = position // GRID[2] % GRID[1]
    d = position // (GRID[2] * GRID[1])
    return d, h, w, t


@triton.jit
def patch_origin(position, GRID: tl.constexpr, IMAGE: tl.constexpr, PATCH: tl.constexpr):
    """Flat place in the image of the first voxel of the patches at some positions."""
    w = position % GRID[2]
    h = position // GRID[2] % GRID[1]
    d = position // (GRID[2] * GRID[1])
    return (d * PATCH[0] * IMAGE[1] + h * PATCH[1]) * IMAGE[2] + w * PATCH[2]


@triton.jit
def load_values(
    codes_ptr,
    scale_ptr,
    index_ptr,
    affine,
    position,
    frame,
    ok,
    v,
    num_voxels,
    GRID: tl.constexpr,
    IMAGE: tl.constexpr,
    PATCH: tl.constexpr,
):
    """Values v of the patches of tokens (position, frame), [tokens, values] in float32, 0 where not `ok`; and which
    lie in the brain. Codes and scale point at the clip; `affine` is its gain, shift and outside value."""
    voxel = v // (PATCH[1] * PATCH[2]) * IMAGE[1] + v // PATCH[2] % PATCH[1]
    voxel = voxel * IMAGE[2] + v % PATCH[2]
    there = ok[:, None] & (v < PATCH[0] * PATCH[1] * PATCH[2])[None, :]
    origin = patch_origin(position, GRID, IMAGE, PATCH)
    place = tl.load(index_ptr + origin[:, None] + voxel[None, :], mask=there, other=-1)
    brain = place >= 0
    code = tl.load(codes_ptr + frame[:, None] * num_voxels + place, mask=brain, other=0).to(tl.float32)
    offset = tl.load(scale_ptr + place, mask=brain, other=0.0).to(tl.float32)
    step = tl.load(scale_ptr + num_voxels + place, mask=brain, other=0.0).to(tl.float32)
    value = tl.where(brain, (offset + step * code) * affine[0] + affine[1], affine[2])
    return tl.where(there, value, 0.0), brain


@triton.jit
def load_affine(gain_ptr, shift_ptr, outside_ptr, clip):
    """Gain, shift and outside value of a clip."""
    return tl.load(gain_ptr + clip), tl.load(shift_ptr + clip), tl.load(outside_ptr + clip)


@triton.jit
def is_hidden(
    token,
    ok,
    clip,
    hidden_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    count,
    GRID: tl.constexpr,
    UNIT: tl.constexpr,
    MODE: tl.constexpr,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """Which tokens (a one-dimensional block) of a clip are hidden; False where not `ok`."""
    if MODE == NONE:
        return ok & False
    elif MODE == GIVEN:
        first = clip.to(tl.int64) * (GRID[0] * GRID[1] * GRID[2] * GRID[3])
        return tl.load(hidden_ptr + first + token, mask=ok, other=0) != 0
    else:
        d, h, w, t = place_of(token, GRID)
        unit = d // UNIT[0] * ((GRID[1] + UNIT[1] - 1) // UNIT[1]) + h // UNIT[1]
        unit = unit * ((GRID[2] + UNIT[2] - 1) // UNIT[2]) + w // UNIT[2]
        unit = unit * ((GRID[3] + UNIT[3] - 1) // UNIT[3]) + t // UNIT[3]
        k0, k1 = unit_keys(seed, epoch_ptr, clip_ptr, clip)
        rank = permute(tl.where(ok, unit, 0), k0, k1, UNITS, LEFT, RIGHT, ROUNDS, False)
        return ok & (rank < count)


@triton.jit
def drawn_token(
    visit,
    ok,
    clip,
    epoch_ptr,
    clip_ptr,
    seed,
    GRID: tl.constexpr,
    UNIT: tl.constexpr,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """The hidden tokens of a clip one after the other, unit by unit, and whether there is one: a unit that the grid's
    end cuts has visits without a token. `visit` is a one-dimensional block in [0, count * tokens of a unit)."""
    k0, k1 = unit_keys(seed, epoch_ptr, clip_ptr, clip)
    inside = visit % (UNIT[0] * UNIT[1] * UNIT[2] * UNIT[3])
    rank = tl.where(ok, visit // (UNIT[0] * UNIT[1] * UNIT[2] * UNIT[3]), 0)
    unit = permute(rank, k0, k1, UNITS, LEFT, RIGHT, ROUNDS, True)
    t = unit % ((GRID[3] + UNIT[3] - 1) // UNIT[3]) * UNIT[3] + inside % UNIT[3]
    unit = unit // ((GRID[3] + UNIT[3] - 1) // UNIT[3])
    w = unit % ((GRID[2] + UNIT[2] - 1) // UNIT[2]) * UNIT[2] + inside // UNIT[3] % UNIT[2]
    unit = unit // ((GRID[2] + UNIT[2] - 1) // UNIT[2])
    h = unit % ((GRID[1] + UNIT[1] - 1) // UNIT[1]) * UNIT[1] + inside // (UNIT[3] * UNIT[2]) % UNIT[1]
    d = unit // ((GRID[1] + UNIT[1] - 1) // UNIT[1]) * UNIT[0] + inside // (UNIT[3] * UNIT[2] * UNIT[1])
    ok = ok & (d < GRID[0]) & (h < GRID[1]) & (w < GRID[2]) & (t < GRID[3])
    return tl.where(ok, ((d * GRID[1] + h) * GRID[2] + w) * GRID[3] + t, 0), ok
