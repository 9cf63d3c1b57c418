"""The Mamba-1 mixer of a block, run over shifted windows of a token grid that stays in natural order.

In and out: normalised tokens `[B, N, C]` of the padded grid. Windows are pure index arithmetic inside the kernels,
so nothing is rolled, partitioned or reversed here (Gu and Dao 2023, Mamba, section 3.4 and figure 3).
Shape suffixes: B clips, N tokens, C width, E inner width, S states, K convolution taps, R rank of dt, P prompt tokens.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmri_scale.config import ModelConfig
from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.scan import prefix_scan, scan
from fmri_scale.kernels.windows import Windows


class Mixer(nn.Module):
    """Projection, causal depthwise convolution, selective scan, gate, projection.

    With `prompt_len` > 0, learnable tokens stand before every window: they are the same for all windows, so they
    are scanned once and enter each window as the state it starts from.
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
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.prompt = nn.Parameter(torch.zeros(prompt_len, width)) if prompt_len else None

    def forward(self, u_BNC: Tensor, windows: Windows) -> Tensor:
        """Return mixed tokens `[B, N, C]`, without the residual."""
        x_BNE, z_BNE = self.in_proj(u_BNC).chunk(2, dim=-1)
        A_ES = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        prefix_KE, h0_ES = self._prefix(A_ES)
        x_BNE = conv_silu(x_BNE, self.conv_weight, self.conv_bias, windows, prefix_KE, backend=self.backend)
        dt_BNE, B_BNS, C_BNS = self._select(x_BNE)
        y_BNE = scan(x_BNE, dt_BNE, A_ES, B_BNS, C_BNS, self.D, windows, h0_ES, backend=self.backend)
        return self.out_proj(y_BNE * F.silu(z_BNE))

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return step sizes `[..., E]` and the input and output maps `[..., S]` of each token."""
        dt, B, C = self.x_proj(x).split([self.rank, self.states, self.states], dim=-1)
        return F.softplus(self.dt_proj(dt)), B, C

    def _prefix(self, A_ES: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what the prompts leave behind: the last K-1 inputs of the convolution and the state."""
        if self.prompt is None:
            return None, None
        x_PE, _ = self.in_proj(self.prompt).chunk(2, dim=-1)
        taps = self.conv_weight.shape[1]
        padded_EP = F.pad(x_PE, (0, 0, taps - 1, 0)).T
        mixed_EP = F.conv1d(padded_EP, self.conv_weight.unsqueeze(1), self.conv_bias, groups=x_PE.shape[1])
        x_act_PE = F.silu(mixed_EP).T
        dt_PE, B_PS, C_PS = self._select(x_act_PE)
        _, h0_ES = prefix_scan(x_act_PE, dt_PE, A_ES, B_PS, C_PS, self.D)
        return padded_EP.T[-(taps - 1) :], h0_ES
