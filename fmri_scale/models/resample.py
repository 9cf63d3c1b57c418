"""Between stages: eight neighbours become one token on the way down, one becomes eight on the way up.

Time is never merged. Shape suffixes: B clips, DHW tokens along x, y, z, T frames, C width.
"""

from torch import Tensor, nn


class PatchMerge(nn.Module):
    """Join 2x2x2 neighbours channel-wise (x slowest), normalise, reduce to `multiplier * width` channels."""

    def __init__(self, width: int, multiplier: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduce = nn.Linear(8 * width, multiplier * width, bias=False)

    def forward(self, x_BDHWTC: Tensor) -> Tensor:
        """Return `[B, D/2, H/2, W/2, T, multiplier * C]`; D, H and W are even."""
        b, d, h, w, t, c = x_BDHWTC.shape
        pairs = x_BDHWTC.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, t, c)
        joined = pairs.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).reshape(b, d // 2, h // 2, w // 2, t, 8 * c)
        return self.reduce(self.norm(joined))


class PatchExpand(nn.Module):
    """Spread a token over 2x2x2 new ones of `width / multiplier` channels, then normalise each."""

    def __init__(self, width: int, multiplier: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width // multiplier, bias=False)
        self.norm = nn.LayerNorm(width // multiplier)

    def forward(self, x_BDHWTC: Tensor) -> Tensor:
        """Return `[B, 2D, 2H, 2W, T, C / multiplier]`."""
        b, d, h, w, t, _ = x_BDHWTC.shape
        spread = self.norm(self.proj(x_BDHWTC).reshape(b, d, h, w, t, 2, 2, 2, -1))
        return spread.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(b, 2 * d, 2 * h, 2 * w, t, -1)
