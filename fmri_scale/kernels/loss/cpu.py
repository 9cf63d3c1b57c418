"""The loss on a CPU: blocks of positions of one clip, their hidden tokens alone, loss and gradients in one visit.

Everything is computed in float32 (float64 for float64 features). Legend as in `fmri_scale.kernels.loss`; k hidden
tokens of a block that count.
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
)
from fmri_scale.kernels.threads import blocks_of, run_blocks
from fmri_scale.kernels.windows import Axes

BLOCK_ELEMENTS = 1 << 17
"Values of a block (512 KB in float32)."


def forward(
    clips: CodedClips,
    features_BNC: Tensor,
    weight_PC: Tensor,
    bias_P: Tensor,
    hidden: Hidden,
    brain_only: bool,
    with_gradients: bool,
    patches_K: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss and its gradients to features, weight and bias (empty unless `with_gradients`)."""
    work = _Scoring(clips, features_BNC, weight_PC, bias_P, hidden, brain_only, patches_K)
    squares = torch.zeros(len(work.blocks), dtype=work.dtype, device=weight_PC.device)
    d_features = torch.zeros_like(work.features) if with_gradients else features_BNC.new_empty(0)
    shares = len(work.blocks) if with_gradients else 0
    d_weight = weight_PC.new_zeros(shares, *weight_PC.shape, dtype=work.dtype)
    d_bias = weight_PC.new_zeros(shares, len(bias_P), dtype=work.dtype)

    def score(blocks: Iterator[range]) -> None:
        for block in blocks:
            number, (clip, tokens_k, features_kC, difference_kP) = block.start, work.difference(block.start)
            squares[number] = difference_kP.square().sum() * work.weight_B[clip]
            if with_gradients:
                gradient_kP = difference_kP * (2.0 * work.weight_B[clip])
                d_features[clip, tokens_k] = (gradient_kP @ work.head).to(d_features.dtype)
                d_weight[number] = gradient_kP.t() @ features_kC
                d_bias[number] = gradient_kP.sum(0)

    run_blocks(score, [range(i, i + 1) for i in range(len(work.blocks))])
    if not with_gradients:
        return squares.sum(), d_features, weight_PC.new_empty(0), bias_P.new_empty(0)
    return squares.sum(), d_features, d_weight.sum(0).to(weight_PC.dtype), d_bias.sum(0).to(bias_P.dtype)


def hidden_values(values_M: Tensor, hidden: Hidden, batch: int, grid: Axes) -> Tensor:
    """Arguments and result as `fmri_scale.kernels.loss.hidden_values`."""
    frames_BM = remembered_tokens(hidden, batch, grid, values_M.device).view(batch, -1, grid[3]).sum(2)
    return (frames_BM * values_M).sum(1)


class _Scoring:
    """What counts of a batch, and how it is cut into blocks."""

    def __init__(self, clips, features_BNC, weight_PC, bias_P, hidden: Hidden, brain_only: bool, patches_K) -> None:
        self.clips, self.features = clips, features_BNC.contiguous()
        self.dtype = torch.promote_types(features_BNC.dtype, torch.float32)
        self.head, self.bias = weight_PC.to(self.dtype), bias_P.to(self.dtype)
        self.places, batch, frames = pick(patch_places(clips), patches_K, 0), len(features_BNC), clips.grid[3]
        self.codes = [codes.t().contiguous() for codes in clips.codes]
        self.counted_MP = self.places >= 0 if brain_only else torch.ones_like(self.places, dtype=torch.bool)
        values_M = self.counted_MP.sum(1)
        hidden_BN = remembered_tokens(hidden, batch, clips.grid, features_BNC.device)
        hidden_BN = pick_tokens(hidden_BN, patches_K, frames)
        self.scored_BMT = hidden_BN.view(batch, -1, frames) & (values_M > 0)[:, None]
        count_B = (hidden_BN.view(batch, -1, frames).sum(2) * values_M).sum(1).clamp(min=1)
        self.weight_B = (1.0 / (batch * count_B).double()).to(self.dtype)
        size = max(1, BLOCK_ELEMENTS // max(1, frames * self.places.shape[1]))
        self.blocks = [(b, m) for b in range(batch) for m in blocks_of(len(self.places), size)]

    def difference(self, number: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """Clip, tokens (k), their features (k, C) and prediction minus truth (k, P), 0 where a value does not count."""
        clip, block = self.blocks[number]
        positions = slice(block.start, block.stop)
        place, frame = self.scored_BMT[clip, positions].nonzero(as_tuple=True)
        tokens_k = (place + block.start) * self.clips.grid[3] + frame
        features_kC = self.features[clip].index_select(0, tokens_k).to(self.dtype)
        found, row_k = place.unique(return_inverse=True)
        series = patch_series(self.clips, clip, self.codes[clip], self.places[positions][found], self.dtype)
        truth = series.transpose(1, 2).contiguous()[row_k, frame]
        difference_kP = torch.addmm(self.bias, features_kC, self.head.t()).sub_(truth)
        return clip, tokens_k, features_kC, difference_kP.mul_(self.counted_MP[positions][place])
