"""A residual block: normalise, mix inside shifted windows, add; normalise, MLP, add.

Tokens are `[B, D, H, W, T, C]`, channels last, T of any length. Semantics of the published block: zero padding up
to whole windows after the first norm, odd blocks shifted by half a window (time included) with no boundary mask.
Where patches are listed (brain.py) tokens are `[B, M, 1, 1, T, C]`, windows hold the patches that are there, and time
alone is padded.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fmri_scale.config import ModelConfig
from fmri_scale.kernels.mlp import norm_mlp
from fmri_scale.kernels.windows import Axes, ListedWindows, Windows, window_table
from fmri_scale.models.draws import uniform
from fmri_scale.models.lean import cast_like
from fmri_scale.models.mixer import Mixer
from fmri_scale.models.shapes import StageShape, effective_window
from fmri_scale.models.strd import RedundancyDropout


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, norm: nn.LayerNorm, residual: bool) -> Tensor:
        """Normalise and map the last axis, with `residual` add x; dropout follows both maps, as published."""
        gain, shift, up, up_bias, down, down_bias = cast_like(
            x, norm.weight, norm.bias, self.up.weight, self.up.bias, self.down.weight, self.down.bias
        )
        if self.dropout.p == 0.0 or not self.training:
            return norm_mlp(x, gain, shift, up, up_bias, down, down_bias, norm.eps, residual, self.backend)
        hidden = F.gelu(F.linear(F.layer_norm(x, gain.shape, gain, shift, norm.eps), up, up_bias))
        branch = self.dropout(F.linear(self.dropout(hidden), down, down_bias))
        return x + branch if residual else branch


class Block(nn.Module):
    """One block of a stage.

    Parameters
    ----------
    shape : the stage it belongs to.
    shifted : windows start half a window further.
    number : position among all blocks of the model; with a clip's key it decides what is dropped.
    drop_path : probability that a clip skips a branch in training.
    encoder : prompts and redundancy dropout may act here; the decoder has neither (as published).
    """

    table: Tensor | None

    def __init__(
        self, shape: StageShape, config: ModelConfig, shifted: bool, number: int, drop_path: float, encoder: bool
    ) -> None:
        super().__init__()
        self.grid, self.window = shape.grid, shape.window
        self.register_buffer("table", None, persistent=False)
        self.shifted, self.wrap = shifted, shape.wrap
        self.drop_path = drop_path
        self.salt = 3 * number
        self.norm1 = nn.LayerNorm(shape.width)
        self.mixer = Mixer(shape.width, config, config.prompt_len if encoder else 0)
        self.norm2 = nn.LayerNorm(shape.width)
        self.mlp = Mlp(shape.width, int(shape.width * config.mlp_ratio), config.dropout, config.backend)
        drops = encoder and config.strd != "off"
        settings = (3 * number + 2, config.strd, config.strd_rate, config.backend)
        self.strd = RedundancyDropout(*settings) if drops else None

    def forward(self, x_BDHWTC: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape; `keys_B` are the clips' random keys (`masking.clip_keys`)."""
        x = self._mix(x_BDHWTC, keys_B)
        if not self._drops:
            return self.mlp(x, self.norm2, residual=True)
        return x + self._drop_path(self.mlp(x, self.norm2, residual=False), keys_B, self.salt + 1)

    def set_patches(self, active_DHW: Tensor) -> None:
        """Have tokens at these patches alone, bool on the CPU."""
        padded, window, shift = effective_window((*self.grid, 1), self.window, self.shifted, self.wrap)
        table = window_table(active_DHW, padded[:3], window[:3], shift[:3])
        self.table = table.to(self.norm1.weight.device)

    def _windows(self, tokens: Axes) -> Windows:
        """Return the windows of the padded grid of tokens (or of listed patches)."""
        if self.table is None:
            return Windows(*effective_window(tokens, self.window, self.shifted, self.wrap))
        padded, window, shift = effective_window((*self.grid, tokens[3]), self.window, self.shifted, self.wrap)
        return ListedWindows((*tokens[:3], padded[3]), window, (0, 0, 0, shift[3]), self.table)

    @property
    def _drops(self) -> bool:
        return self.training and self.drop_path > 0.0

    def _mix(self, x_BDHWTC: Tensor, keys_B: Tensor | None) -> Tensor:
        """Return the tokens with the mixer's branch added."""
        b, d, h, w, t, c = x_BDHWTC.shape
        windows = self._windows((d, h, w, t))
        padded = windows.grid
        added = padded == (d, h, w, t) and self.strd is None and not self._drops  # by the mixer itself
        mixed_BNC = self.mixer(x_BDHWTC, self.norm1, windows, added)
        if added:
            return mixed_BNC.view(x_BDHWTC.shape)
        if self.strd is not None:
            mixed_BNC = self.strd(mixed_BNC, windows, keys_B)
        branch = mixed_BNC.view(b, *padded, c)[:, :d, :h, :w, :t]
        return x_BDHWTC + self._drop_path(branch, keys_B, self.salt)

    def _drop_path(self, branch: Tensor, keys_B: Tensor | None, salt: int) -> Tensor:
        if not self._drops:
            return branch
        if keys_B is None:
            raise ValueError("stochastic depth in training needs the clips' keys: pass keys_B (TokenMask.keys)")
        keep_B1 = uniform(keys_B, salt, 1) >= self.drop_path
        return branch * (keep_B1 / (1.0 - self.drop_path)).to(branch.dtype).view(-1, *[1] * (branch.ndim - 1))


def run_blocks(blocks: Iterable[nn.Module], x_BDHWTC: Tensor, keys_B: Tensor | None, recompute: bool) -> Tensor:
    """Run blocks in order; `recompute` keeps only each block's input for the backward pass."""
    for block in blocks:
        if recompute and x_BDHWTC.requires_grad:
            x_BDHWTC = checkpoint(block, x_BDHWTC, keys_B, use_reentrant=False)
        else:
            x_BDHWTC = block(x_BDHWTC, keys_B)
    return x_BDHWTC
