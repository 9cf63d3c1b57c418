"""A backbone with a head on its pooled latent map, for classification and regression.

Shape suffixes: B clips, C width of the last stage, DHW tokens along x, y, z, T frames.
"""

from torch import Tensor, nn

from fmri_scale.config import ModelConfig
from fmri_scale.models.backbone import Backbone
from fmri_scale.models.init import init_weights
from fmri_scale.models.shapes import stage_width


class Head(nn.Module):
    """Mean over tokens, then one linear map, or two without a nonlinearity between them (published version 2).

    Parameters
    ----------
    width : channels of the latent map.
    outputs : numbers predicted for a clip.
    hidden : width of the first of two maps; 0 has one map.
    """

    def __init__(self, width: int, outputs: int, hidden: int = 0) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.out = nn.Linear(hidden or width, outputs)

    def forward(self, latent_BCDHWT: Tensor) -> Tensor:
        """Return `[B, outputs]`."""
        pooled_BC = latent_BCDHWT.flatten(2).mean(-1)
        return self.out(pooled_BC if self.hidden is None else self.hidden(pooled_BC))


class Predictor(nn.Module):
    """Backbone and head, with weights drawn from `seed`; state-dict names `backbone.*` and `head.*`."""

    def __init__(self, config: ModelConfig, outputs: int, hidden: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head = Head(stage_width(config, len(config.depths) - 1), outputs, hidden)
        init_weights(self, seed)

    def forward(self, volume_BCXYZT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Return `[B, outputs]` for clips `[B, C, X, Y, Z, T]`."""
        return self.head(self.backbone(volume_BCXYZT, keys_B))
