"""Low-rank updates of the projections of the mixers: LoRA.

A frozen weight W `[out, in]` acts as W + (alpha / rank) * up @ down, with up `[out, rank]` zero at first, so that
training begins at the pretrained model (Hu et al. 2022, LoRA, section 4.1); on all four projections of a Mamba mixer
(Yoshimura et al. 2025, MambaPEFT, section 3). The weights stay where they are: kernels and mixers see the sum.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fmri_scale.models.init import generator
from fmri_scale.models.mixer import Mixer

PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")


class LowRank(nn.Module):
    """The update of one weight.

    Parameters
    ----------
    shape : of the weight, `[out, in]`.
    rank : of the update; a weight with a shorter side takes that.
    alpha : the update is scaled by alpha / rank.
    rng : draws `down`, uniform within the inverse root of its inputs, as linear maps are.
    """

    def __init__(self, shape: tuple[int, int], rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__()
        out, inner = shape
        rank = min(rank, out, inner)
        self.scale = alpha / rank
        self.down = nn.Parameter((2.0 * torch.rand(rank, inner, generator=rng) - 1.0) * inner**-0.5)
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """Return the weight with its update."""
        return weight_OI + self.scale * (self.up @ self.down)


def add_lora(backbone: nn.Module, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Give the projections of every mixer of an encoder an update.

    Parameters
    ----------
    backbone : the encoder, changed in place; its outputs are the same until the updates are trained.
    seed : decides the first values, with the name of each weight.

    Returns
    -------
    the parameters of the updates, float32.
    """
    found: list[nn.Parameter] = []
    mixers = [(name, module) for name, module in backbone.named_modules() if isinstance(module, Mixer)]
    for name, mixer in mixers:
        for projection in PROJECTIONS:
            linear = getattr(mixer, projection)
            rng = generator(seed, f"backbone.{name}.{projection}.lora")
            out, inner = linear.weight.shape
            update = LowRank((out, inner), rank, alpha, rng).to(linear.weight)
            parametrize.register_parametrization(linear, "weight", update)
            found += list(update.parameters())
    return found
