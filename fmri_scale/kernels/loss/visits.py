"""Which tokens the loss's kernels visit: the hidden ones, by the inverse of the keyed bijection or from a list.

A clip has as many visits as hidden tokens (drawn units that the grid's end cuts have some without a token), known on
the device alone; how many values count among them is summed by a small kernel. Where patches are listed, LISTED of
them, a given mask's visits are those of the listed patches; a drawn mask's are all, and the others count nothing.
"""

import math

import torch
import triton
import triton.language as tl

from fmri_scale.kernels.clips import CodedClips, Hidden, brain_values, pick_tokens
from fmri_scale.kernels.clips_jit import DRAWN, drawn_token, hidden_arguments
from fmri_scale.kernels.jit import launch
from fmri_scale.kernels.windows import Axes

COUNT_BLOCK = 1024
"Visits of a program that counts."


@triton.jit
def loss_count_kernel(
    count_ptr,
    values_ptr,
    visits_ptr,
    list_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    TOKENS: tl.constexpr,
    GRID: tl.constexpr,
    UNIT: tl.constexpr,
    MODE: tl.constexpr,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
    LISTED: tl.constexpr,
):
    """How many values count among TOKENS visits (program axis 0) of a clip (axis 1)."""
    clip = tl.program_id(1)
    visits = tl.load(visits_ptr + clip)
    token, ok = visited(
        tl.program_id(0) * TOKENS + tl.arange(0, TOKENS),
        visits,
        clip,
        list_ptr,
        epoch_ptr,
        clip_ptr,
        seed,
        GRID,
        UNIT,
        MODE,
        UNITS,
        LEFT,
        RIGHT,
        ROUNDS,
        LISTED,
    )
    values = tl.load(values_ptr + token // GRID[3], mask=ok, other=0)
    tl.store(count_ptr + clip * tl.num_programs(0) + tl.program_id(0), tl.sum(values, 0))


@triton.jit
def visited(
    visit,
    visits,
    clip,
    list_ptr,
    epoch_ptr,
    clip_ptr,
    seed,
    GRID: tl.constexpr,
    UNIT: tl.constexpr,
    MODE: tl.constexpr,
    UNITS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROUNDS: tl.constexpr,
    LISTED: tl.constexpr,
):
    """The hidden tokens of some visits, and which of the visits have one."""
    ok = visit < visits
    if MODE == DRAWN:
        return drawn_token(visit, ok, clip, epoch_ptr, clip_ptr, seed, GRID, UNIT, UNITS, LEFT, RIGHT, ROUNDS)
    else:
        rows = (LISTED if LISTED > 0 else GRID[0] * GRID[1] * GRID[2]) * GRID[3]
        first = clip.to(tl.int64) * (rows + 1)
        return tl.load(list_ptr + first + visit, mask=ok, other=0), ok


def visits_of(
    hidden: Hidden, batch: int, grid: Axes, device: torch.device, patches: torch.Tensor | None = None
) -> tuple[int, tuple[torch.Tensor | int, ...]]:
    """The most visits a clip can have, and the arguments that enumerate them: how many visits each clip has, the list
    of tokens, epoch, clip_ids, seed."""
    if hidden.clip_ids is not None:
        most = hidden.num_hidden * math.prod(hidden.unit)
        visits = torch.full((batch,), most, dtype=torch.int32, device=device)
        _, epoch, clip_ids, seed, _ = hidden_arguments(hidden, visits)
        return most, (visits, visits, epoch, clip_ids, seed)
    tokens = math.prod(grid)
    if hidden.given is None:
        visits = torch.zeros(batch, dtype=torch.int32, device=device)
        return 0, (visits, visits, visits, visits, 0)
    given, token = hidden.given, torch.arange(tokens, dtype=torch.int32, device=device)
    if patches is not None:
        given, token = pick_tokens(given, patches, grid[3]), pick_tokens(token[None], patches, grid[3])[0]
        tokens = len(token)
    place = torch.where(given, given.cumsum(1) - 1, tokens)  # what is not hidden goes behind the end
    listed = torch.empty(batch, tokens + 1, dtype=torch.int32, device=device)
    listed.scatter_(1, place, token.expand(batch, tokens))
    visits = given.sum(1, dtype=torch.int32)
    return tokens, (visits, listed, visits, visits, 0)


def values_of(clips: CodedClips, brain_only: bool, places: torch.Tensor | None = None) -> torch.Tensor:
    """How many values of each position's patch count, int32 (M,); `places_in_list` where some have no tokens."""
    if brain_only:
        values = brain_values(clips)
    else:
        size = (math.prod(clips.grid[:3]),)
        values = torch.full(size, math.prod(clips.patch), dtype=torch.int32, device=clips.codes.device)
    return values if places is None else values.masked_fill_(places < 0, 0)


def factor_of(values, visits, most: int, batch: int, constants) -> torch.Tensor:
    """1 / (clips * values that count), float32 (B,)."""
    counts = count_of(values, visits, most, batch, constants)
    return (1.0 / (batch * counts.clamp(min=1)).double()).float()


def count_of(values, visits, most: int, batch: int, constants) -> torch.Tensor:
    """Values that count among all visits of each clip, int64 (B,)."""
    programs = triton.cdiv(max(1, most), COUNT_BLOCK)
    counts = torch.empty(batch, programs, dtype=torch.int32, device=values.device)
    names = ("GRID", "UNIT", "MODE", "UNITS", "LEFT", "RIGHT", "ROUNDS", "LISTED")
    chosen = {name: constants[name] for name in names}
    launch(
        loss_count_kernel,
        (programs, batch),
        values.device,
        counts,
        values,
        *visits,
        TOKENS=COUNT_BLOCK,
        **chosen,
        num_warps=4,
    )
    return counts.sum(1)
