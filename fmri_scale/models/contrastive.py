"""The second objective: clips of one run are alike and those of others are not (SwiFT's contrastive pair).

Instance contrast: two clips of one run that share no frame, each under a random change, are a pair among the clips of
all runs in the batch. Local-local contrast: two changes of one clip are a pair beside another clip of the same run.
Both are NT-Xent (Chen et al. 2020, SimCLR, equation 1) on projections of the mean of the latent map, as in SwiFT (Kim
et al. 2023, NeurIPS, self-supervised pre-training; published code `project/module/pl_classifier.py`, types 1 to 3,
`utils/losses.py` and `models/emb_mlp.py`; the pair goes back to TCLR, Dave et al. 2022). Different on purpose: the
negatives and the norm of projections are of all ranks together, the local term is a mean over clips and not their sum,
and both terms share their forward passes. Shape suffixes: V views, B clips, N clips of all ranks, C channels, XYZ
voxels, T frames, E width of the latent map, P width of the projection.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmri_scale.config import LossConfig, ModelConfig
from fmri_scale.config.schema import ObjectiveConfig
from fmri_scale.kernels.clips import CodedClips
from fmri_scale.models.init import init_weights
from fmri_scale.models.mae import MAEOutput, MaskedAutoencoder
from fmri_scale.models.masking import TokenMask
from fmri_scale.models.shapes import stage_width

PROJECTOR = "projector."
"Names of the parameters that the released model does not have."


class ClipViews(NamedTuple):
    """Changed clips of the runs of a batch.

    Attributes
    ----------
    volumes : float `[V, B, C, X, Y, Z, T]`: a clip of each run, another of it, and, for the local contrast, both again
        under other changes. The first is the one that is reconstructed.
    keys : int64 `[V, B]`, random keys of the clips.
    """

    volumes: Tensor
    keys: Tensor


class Projector(nn.Module):
    """Latent means to vectors of length one: a linear map, a norm over the batch, the direction of what is left."""

    def __init__(self, width: int, projected: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, projected, bias=False)
        self.gain = nn.Parameter(torch.ones(projected))
        self.shift = nn.Parameter(torch.zeros(projected))

    def forward(self, pooled_VBE: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Return unit vectors of the clips of all ranks, `[V, N, P]`, normalised over all views and clips."""
        projected = gather(self.linear(pooled_VBE).transpose(0, 1)).transpose(0, 1)
        mean, spread = projected.mean((0, 1)), projected.var((0, 1), correction=0)
        return F.normalize((projected - mean) * (spread + 1e-5).rsqrt() * self.gain + self.shift, dim=-1)


class ContrastiveAutoencoder(MaskedAutoencoder):
    """A masked autoencoder that is also, or only, trained by contrast; of anything but `ClipViews` it is a plain one.

    Parameters
    ----------
    objective : weights of the terms.
    gather : puts the clips of all ranks together along the first axis, with gradients; None: there is one rank.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int,
        loss: LossConfig,
        objective: ObjectiveConfig,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(config, seed, loss)
        self.objective = objective
        self.projector = Projector(stage_width(config, len(config.depths) - 1), objective.width)
        init_weights(nn.ModuleDict({"projector": nn.ModuleDict({"linear": self.projector.linear})}), seed)
        self._gather = gather or (lambda clips: clips)

    def forward(
        self,
        clips: Tensor | CodedClips | ClipViews,
        mask: TokenMask,
        brain: Tensor | bool | None = None,
        predict: bool | None = None,
    ) -> MAEOutput:
        """Score views of runs; other clips are reconstructed, see `MaskedAutoencoder.forward`.

        Parameters
        ----------
        mask, brain : hidden tokens and scored voxels of the first view.
        """
        if not isinstance(clips, ClipViews):
            return super().forward(clips, mask, brain, predict)
        contrast, latent, parts = self._contrast(clips)
        if not self.objective.reconstruction:
            nothing = torch.zeros((), device=contrast.device)
            hidden = {"masked_fraction": nothing, "masked_fraction_brain": nothing}
            return MAEOutput(contrast, None, latent, {**hidden, **parts})
        output = super().forward(clips.volumes[0], mask, brain, predict)
        parts["loss_reconstruction"] = output.loss.detach()
        loss = self.objective.reconstruction * output.loss + contrast
        return output._replace(loss=loss, metrics={**output.metrics, **parts})

    def _contrast(self, clips: ClipViews) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the weighted terms, the latent map of the first view (channels last), and each term."""
        views, batch = clips.volumes.shape[:2]
        latent = self.backbone(clips.volumes.flatten(0, 1), clips.keys.flatten())
        with torch.autocast(latent.device.type, enabled=False):
            pooled_BE = latent.flatten(2).mean(-1).to(self.projector.linear.weight.dtype)
            unit_VNP = self.projector(pooled_BE.unflatten(0, (views, batch)), self._gather)
            terms = {}
            if self.objective.instance:
                terms["instance"] = nt_xent(unit_VNP[0], unit_VNP[1], self.objective.temperature)
            if self.objective.local:
                pairs_VNP = unit_VNP.unflatten(0, (2, 2)).transpose(1, 2)  # [change, N, clip of the run, P]
                terms["local"] = nt_xent(pairs_VNP[0], pairs_VNP[1], self.objective.temperature).mean()
            total = torch.zeros((), device=latent.device)
            for name, value in terms.items():
                total = total + getattr(self.objective, name) * value
        parts = {f"loss_{name}": value.detach() for name, value in terms.items()}
        return total, latent[:batch].permute(0, 2, 3, 4, 5, 1), parts


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each vector's partner among all others (SimCLR, equation 1).

    Parameters
    ----------
    one, other : unit vectors `[..., n, P]`; row i of one and of the other are partners.
    temperature : divides the cosines.

    Returns
    -------
    mean over the 2n vectors, `[...]`.
    """
    vectors, count = torch.cat([one, other], -2), one.shape[-2]
    cosines = vectors @ vectors.transpose(-1, -2) / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=one.device)
    partner = torch.arange(2 * count, device=one.device).roll(count)
    found = cosines.gather(-1, partner.expand(cosines.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return (cosines.masked_fill(itself, -torch.inf).logsumexp(-1) - found).mean(-1)
