"""From a volume to tokens and back, and what tells a token where and when it is.

A clip is `[B, C, X, Y, Z, T]`; a patch is `px * py * pz` voxels of one frame with all channels, channel fastest.
Tokens stand in natural order: x slowest, then y, z, and frames fastest. Shape suffixes: B clips, C channels of the
input, XYZ voxels, DHW tokens along x, y, z, T frames, N = D*H*W*T tokens, M = D*H*W positions, P values of a patch,
E width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmri_scale.models.brain import take


def patchify(volume_BCXYZT: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut a clip into patches.

    Parameters
    ----------
    volume_BCXYZT : the clip; X, Y, Z are multiples of the patch.
    patch : voxels of a patch along x, y, z (further entries are ignored).

    Returns
    -------
    patches `[B, D, H, W, T, P]`, contiguous, P in the order (px, py, pz, channel).
    """
    b, c, x, y, z, t = volume_BCXYZT.shape
    px, py, pz = patch[:3]
    cut = volume_BCXYZT.reshape(b, c, x // px, px, y // py, py, z // pz, pz, t)
    if c == 1:
        # Rows of pz*T neighbours move as a whole first: the second copy then stays inside the cache.
        rows = cut[:, 0].permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, x // px, y // py, z // pz, px * py * pz, t)
        return rows.transpose(-1, -2).contiguous()
    return cut.permute(0, 2, 4, 6, 8, 3, 5, 7, 1).reshape(b, x // px, y // py, z // pz, t, px * py * pz * c)


def unpatchify(patches_BDHWTP: Tensor, patch: Sequence[int]) -> Tensor:
    """Undo `patchify`: `[B, D, H, W, T, P]` to `[B, C, X, Y, Z, T]`."""
    b, d, h, w, t, values = patches_BDHWTP.shape
    px, py, pz = patch[:3]
    c = values // (px * py * pz)
    cut = patches_BDHWTP.reshape(b, d, h, w, t, px, py, pz, c)
    return cut.permute(0, 8, 1, 5, 2, 6, 3, 7, 4).reshape(b, c, d * px, h * py, w * pz, t)


class PatchEmbed(nn.Linear):
    """A linear map from the values of a patch to a token."""

    def forward(self, patches_BDHWTP: Tensor) -> Tensor:
        """Return tokens `[B, D, H, W, T, E]` in the dtype that matrix products have (`product_dtype`)."""
        dtype = product_dtype(self.weight)
        return F.linear(patches_BDHWTP.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


def product_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with a weight: that of autocast where it is on, else the weight's own."""
    kind = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


class PositionalEmbedding(nn.Module):
    """A learnt vector per position plus one per frame, added to the tokens of a stage.

    A clip shorter than `num_frames` takes the first vectors (as published); a longer one takes the whole series,
    interpolated linearly, which the published model cannot do. `places` are the patches that have tokens (brain.py).
    """

    places: Tensor | None

    def __init__(self, grid: tuple[int, int, int], num_frames: int, width: int) -> None:
        super().__init__()
        self.space = nn.Parameter(torch.zeros(*grid, width))
        self.time = nn.Parameter(torch.zeros(num_frames, width))
        self.register_buffer("places", None, persistent=False)

    def forward(self, tokens_BDHWTE: Tensor) -> Tensor:
        """Return the tokens with their position and frame added, in their dtype."""
        place = take(self.space, self.places, 0).unsqueeze(-2) + self._frames(tokens_BDHWTE.shape[-2])
        return tokens_BDHWTE + place.to(tokens_BDHWTE.dtype)

    def vectors(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return the vectors of the positions `[M, E]` and of the frames of a clip `[T, E]`."""
        return self.space.flatten(0, 2), self._frames(num_frames)

    def _frames(self, num_frames: int) -> Tensor:
        if num_frames <= self.time.shape[0]:
            return self.time[:num_frames]
        series = self.time.T.unsqueeze(0).float()
        return F.interpolate(series, size=num_frames, mode="linear", align_corners=True)[0].T.to(self.time.dtype)
