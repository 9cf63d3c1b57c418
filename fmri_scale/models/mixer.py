"""The Mamba-1 mixer of a block, run over shifted windows of a token grid that stays in natural order.

In: tokens `[B, D, H, W, T, C]`, out: `[B, N, C]` of the padded grid. Windows are pure index arithmetic inside the
kernels, so nothing is rolled, partitioned or reversed here (Gu and Dao 2023, Mamba, section 3.4 and figure 3).
Shape suffixes: B clips, N tokens, C width, E inner width, S states, K convolution taps, R rank of dt, P prompt tokens.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmri_scale.config import ModelConfig
from fmri_scale.kernels.scan import prefix_scan
from fmri_scale.kernels.windows import Windows
from fmri_scale.models.lean import Layout, Scan, mix

Selected = tuple[Tensor, Tensor, Tensor]
"Step sizes `[..., E]` and the input and output maps `[..., S]` of each token."


class Mixer(nn.Module):
    """In-projection of normalised tokens, causal depthwise convolution, selective scan, gate, projection.

    With `prompt_len` > 0, learnable tokens stand before every window: they are the same for all windows, so they
    are scanned once and enter each window as the state it starts from. A bidirectional mixer adds a scan from the
    last token to the first, with its own decay and skip; the rest is shared.
    """

    def __init__(self, width: int, config: ModelConfig, prompt_len: int = 0) -> None:
        super().__init__()
        inner = config.expand * width
        self.states = config.state_dim
        self.rank = math.ceil(width / 16)
        self.backend = config.backend
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.zeros(inner, config.conv_dim))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.x_proj = nn.Linear(inner, self.rank + 2 * self.states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, self.states))
        self.D = nn.Parameter(torch.ones(inner))
        both = config.bidirectional
        self.A_log_reverse = nn.Parameter(torch.zeros(inner, self.states)) if both else None
        self.D_reverse = nn.Parameter(torch.ones(inner)) if both else None
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.prompt = nn.Parameter(torch.zeros(prompt_len, width)) if prompt_len else None

    def forward(self, x_BDHWTC: Tensor, norm: nn.LayerNorm, windows: Windows, residual: bool) -> Tensor:
        """Return mixed tokens `[B, N, C]`, N of the grid of the windows; with `residual`, x added to them."""
        before_KE, prompts = self._prompts()
        taps = (self.conv_weight, self.conv_bias, None if before_KE is None else before_KE.to(x_BDHWTC.dtype))
        inward = (self.in_proj.weight, self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias)
        scans = [_scan(self.A_log, self.D, prompts)]
        if self.A_log_reverse is not None and self.D_reverse is not None:
            scans.append(_scan(self.A_log_reverse, self.D_reverse, prompts))
        layout = Layout(windows, self.rank, self.states, self.backend, norm.eps, residual)
        return mix(x_BDHWTC, norm, taps, (*inward, self.out_proj.weight), scans, layout)

    def _select(self, x: Tensor) -> Selected:
        dt, B, C = self.x_proj(x).split([self.rank, self.states, self.states], dim=-1)
        return F.softplus(self.dt_proj(dt)), B, C

    def _prompts(self) -> tuple[Tensor | None, tuple[Tensor, Selected] | None]:
        """Return the last K-1 inputs that prompts leave to the convolution, and the prompts as the scan sees them."""
        if self.prompt is None:
            return None, None
        x_PE, _ = self.in_proj(self.prompt).chunk(2, dim=-1)
        taps = self.conv_weight.shape[1]
        padded_EP = F.pad(x_PE, (0, 0, taps - 1, 0)).T
        mixed_EP = F.conv1d(padded_EP, self.conv_weight.unsqueeze(1), self.conv_bias, groups=x_PE.shape[1])
        x_PE = F.silu(mixed_EP).T
        return padded_EP.T[len(x_PE) :], (x_PE, self._select(x_PE))


def _scan(A_log_ES: Tensor, D_E: Tensor, prompts: tuple[Tensor, Selected] | None) -> Scan:
    """Return the decay rates of a direction, its skip and the state that the prompts leave to every window."""
    A_ES = -torch.exp(A_log_ES.to(torch.promote_types(A_log_ES.dtype, torch.float32)))
    if prompts is None:
        return Scan(A_ES, D_E, None)
    x_PE, (dt_PE, B_PS, C_PS) = prompts
    return Scan(A_ES, D_E, prefix_scan(x_PE, dt_PE, A_ES, B_PS, C_PS, D_E)[1])
