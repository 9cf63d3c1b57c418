"""The embedding on a CPU: blocks of patches gathered from the codes into cache, one matrix product each, all cores.

A patch without brain holds one value throughout; such patches are neither gathered nor multiplied.
Values are made in float32 (float64 for float64 weights), as is everything that is summed. Nothing of the size of the
volume exists. Legend as in `fmri_scale.kernels.embed`; m positions of a block, counted in the list where there is one.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fmri_scale.kernels.clips import (
    CodedClips,
    Hidden,
    patch_places,
    patch_series,
    pick,
    pick_tokens,
    remembered_tokens,
    slot_of_token,
)
from fmri_scale.kernels.threads import blocks_of, run_blocks
from fmri_scale.kernels.windows import Axes

BLOCK_ELEMENTS = 1 << 17
"Values of a block (512 KB in float32)."


def forward(
    clips: CodedClips,
    weight_CP: Tensor,
    bias_C: Tensor,
    mask_tokens_SC: Tensor,
    position_MC: Tensor,
    time_TC: Tensor,
    hidden: Hidden,
    slots: Axes,
    patches_K: Tensor | None = None,
) -> Tensor:
    """Return tokens (B, N, C) in the dtype of the weight."""
    work = _Patches(clips, weight_CP.dtype, patches_K)
    weight, bias, position, time = (v.to(work.dtype) for v in (weight_CP, bias_C, position_MC, time_TC))
    batch, width, grid = work.batch, weight.shape[0], clips.grid
    position = pick(position, patches_K, 0)
    hidden_BN = remembered_tokens(hidden, batch, grid, clips.codes.device)
    hidden_BMT = pick_tokens(hidden_BN, patches_K, grid[3]).view(batch, -1, grid[3])
    slot_MT = pick(slot_of_token(grid, slots, weight.device).view(-1, grid[3]), patches_K, 0)
    stand_in_MTC = mask_tokens_SC.to(work.dtype)[slot_MT]
    out = weight_CP.new_empty(batch, len(position), grid[3], width)

    def finish(clip: int, m: Tensor, seen: Tensor) -> None:
        tokens = torch.where(hidden_BMT[clip, m, :, None], stand_in_MTC[m], seen)
        out[clip].index_copy_(0, m, (tokens + position[m, None] + time).to(out.dtype))

    def embed_blocks(blocks: Iterator[range]) -> None:
        for block in blocks:
            clip, m = work.split(block)
            frames = work.series(clip, m).transpose(1, 2)
            finish(clip, m, torch.bmm(frames, weight.t().expand(len(m), -1, -1)) + bias)

    run_blocks(embed_blocks, work.blocks)
    for clip in range(batch):
        finish(clip, work.empty, clips.outside[clip].to(work.dtype) * weight.sum(1) + bias)
    return out.flatten(1, 2)


def backward(
    dy_BNC: Tensor,
    clips: CodedClips,
    weight_CP: Tensor,
    bias_C: Tensor,
    mask_tokens_SC: Tensor,
    position_MC: Tensor,
    time_TC: Tensor,
    hidden: Hidden,
    slots: Axes,
    patches_K: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of weight, bias, mask tokens, position and time, in the dtype of each."""
    work = _Patches(clips, weight_CP.dtype, patches_K)
    batch, frames, width = work.batch, clips.grid[3], weight_CP.shape[0]
    hidden_BN = pick_tokens(remembered_tokens(hidden, batch, clips.grid, dy_BNC.device), patches_K, frames)
    dy = dy_BNC.to(work.dtype)
    seen_BMTC = dy.masked_fill(hidden_BN[..., None], 0.0).view(batch, -1, frames, width)
    d_weight = torch.empty(len(work.blocks), *weight_CP.shape, dtype=work.dtype, device=dy.device)

    def multiply_blocks(blocks: Iterator[range]) -> None:
        for block in blocks:
            clip, m = work.split(block)
            upstream = seen_BMTC[clip, m].flatten(0, 1)
            d_weight[work.number(block)] = upstream.t() @ work.series(clip, m).transpose(1, 2).flatten(0, 1)

    run_blocks(multiply_blocks, work.blocks)
    d_empty_BC = seen_BMTC[:, work.empty].sum((1, 2)) * clips.outside.to(work.dtype)[:, None]
    d_token_NC = dy.masked_fill(~hidden_BN[..., None], 0.0).sum(0)
    slot_N = pick(slot_of_token(clips.grid, slots, dy.device).view(-1, frames), patches_K, 0).flatten()
    d_mask = torch.zeros_like(mask_tokens_SC, dtype=work.dtype).index_add_(0, slot_N, d_token_NC)
    d_position = dy.view(batch, -1, frames, width).sum((0, 2))
    if patches_K is not None:
        d_position = d_position.new_zeros(position_MC.shape).index_copy_(0, patches_K.long(), d_position)
    d_time = dy.view(-1, frames, width).sum(0)
    grads = (d_weight.sum(0) + d_empty_BC.sum(0)[:, None], seen_BMTC.sum((0, 1, 2)), d_mask, d_position, d_time)
    like = (weight_CP, bias_C, mask_tokens_SC, position_MC, time_TC)
    return tuple(g.to(p.dtype) for g, p in zip(grads, like, strict=True))


class _Patches:
    """The codes of a batch cut into blocks of positions of one clip; positions without brain, `empty`, are in none."""

    def __init__(self, clips: CodedClips, dtype: torch.dtype, patches_K: Tensor | None) -> None:
        self.clips, self.dtype = clips, torch.promote_types(dtype, torch.float32)
        self.places = pick(patch_places(clips), patches_K, 0)
        brain_M = (self.places >= 0).any(1)
        self.full, self.empty = brain_M.nonzero().squeeze(1), (~brain_M).nonzero().squeeze(1)
        self.batch = clips.codes.shape[0]
        self.codes = [codes.t().contiguous() for codes in clips.codes]
        self.size = max(1, BLOCK_ELEMENTS // max(1, clips.grid[3] * self.places.shape[1]))
        pieces = blocks_of(len(self.full), self.size)
        self.pieces = len(pieces)
        starts = [clip * len(self.full) for clip in range(self.batch)]
        self.blocks = [range(start + p.start, start + p.stop) for start in starts for p in pieces]

    def split(self, block: range) -> tuple[int, Tensor]:
        """Clip and positions of a block."""
        clip, first = divmod(block.start, len(self.full))
        return clip, self.full[first : first + len(block)]

    def number(self, block: range) -> int:
        """Place of a block among all."""
        clip, first = divmod(block.start, len(self.full))
        return clip * self.pieces + first // self.size

    def series(self, clip: int, m: Tensor) -> Tensor:
        """Values of the patches, (m, P, T)."""
        return patch_series(self.clips, clip, self.codes[clip], self.places[m], self.dtype)
