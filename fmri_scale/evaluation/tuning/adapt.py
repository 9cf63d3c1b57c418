"""A released model made ready for a task: a head, and what of the backbone is trained.

`adapt` gives a `TunedModel`, whose other parameters are frozen, and `Share` counts both. Prompts and updates train in
the backbone's eval mode, so that it is the pretrained one; full fine-tuning trains with the release's dropout.
Shape suffixes: B clips, C channels, XYZ voxels, T frames, E width of a feature, K outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmri_scale.errors import DataError
from fmri_scale.evaluation.tuning.settings import FROM_RANDOM, TuningConfig
from fmri_scale.models import Backbone, init_weights, parameter_groups
from fmri_scale.models.backbone import EncoderStage
from fmri_scale.models.block import Block
from fmri_scale.models.lora import add_lora
from fmri_scale.models.prompts import add_prompts
from fmri_scale.release import Pretrained

FROZEN_METHODS = ("prompt", "lora")
"Methods that leave every weight of the backbone as it is."


class TunedModel(nn.Module):
    """Backbone, and a linear head on the standardised mean of its latent map.

    Parameters
    ----------
    backbone
        Adapted; changed by training.
    width, outputs
        E and K.
    frozen
        The backbone's own weights are not trained: it stays in eval mode.
    """

    def __init__(self, backbone: Backbone, width: int, outputs: int, frozen: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, outputs)
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_scale", torch.ones(width))
        self.frozen = frozen

    def forward(self, volume_BCXYZT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Return `[B, K]`: logits, or a standardised value."""
        pooled_BE = self.pooled(volume_BCXYZT, keys_B)
        return self.head((pooled_BE - self.feature_mean) / self.feature_scale)

    def pooled(self, volume_BCXYZT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """Return the mean of the latent map over all tokens, float32 `[B, E]`."""
        return self.backbone(volume_BCXYZT, keys_B).flatten(2).mean(-1).float()

    def train(self, mode: bool = True) -> "TunedModel":
        """Switch dropout on or off; never in a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def result(self) -> dict[str, Tensor]:
        """What training leaves: trained parameters, and the statistics of features."""
        state: Mapping[str, Tensor] = self.trained()
        return {**state, "feature_mean": self.feature_mean, "feature_scale": self.feature_scale}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `result` gave; KeyError or RuntimeError where it is of another model."""
        with torch.no_grad():
            for name, value in self.result().items():
                value.copy_(state[name])


@dataclass(frozen=True)
class Share:
    """How much of a model is trained: numbers of parameters."""

    method: str
    tuned: int
    head: int
    frozen: int

    @property
    def fraction(self) -> float:
        """Trained share of all parameters."""
        return (self.tuned + self.head) / (self.tuned + self.head + self.frozen)

    def __str__(self) -> str:
        what = {"prompt": "prompt", "lora": "low-rank"}.get(self.method, "backbone")
        return (
            f"{self.tuned:,} {what} parameters and {self.head:,} of the head are trained, {self.frozen:,} are frozen: "
            f"{self.fraction:.2%} of the model"
        )


def adapt(model: Pretrained, method: str, config: TuningConfig, outputs: int, seed: int) -> TunedModel:
    """Make a released model ready to be tuned.

    Parameters
    ----------
    model
        Its backbone is taken and changed.
    outputs
        K: classes, or 1.
    seed
        Of everything new.

    Raises
    ------
    DataError
        The release has prompts of another length.
    """
    backbone = model.backbone
    if method == FROM_RANDOM:
        init_weights(model.model, seed)
    backbone.requires_grad_(method not in FROZEN_METHODS)
    try:
        added = _added(backbone, method, config, seed)
    except ValueError as error:
        raise DataError(f"{model.path}: {error}; set tuning.prompt_len to it") from error
    for parameter in added:
        parameter.requires_grad_(True)
    for module in backbone.modules():
        if isinstance(module, Block):
            module.strd = None  # a part of pretraining alone, as published
        if isinstance(module, EncoderStage):
            module.recompute = config.recompute
    tuned = TunedModel(backbone, model.width, outputs, method in FROZEN_METHODS)
    init_weights(nn.ModuleDict({"head": tuned.head}), seed)
    return tuned.to(model.device)


def share(tuned: TunedModel, method: str) -> Share:
    """Count what is trained."""
    head = sum(p.numel() for p in tuned.head.parameters())
    trained = sum(p.numel() for p in tuned.trained().values())
    return Share(method, trained - head, head, sum(p.numel() for p in tuned.parameters()) - trained)


def optimizer_groups(tuned: TunedModel, lr: float, config: TuningConfig) -> list[dict]:
    """Groups of trained parameters with their peak rates, in an order that depends on the model alone."""
    head = {id(p) for p in tuned.head.parameters()}
    groups = []
    for found in parameter_groups(tuned, config.weight_decay):
        trained = [p for p in found["params"] if p.requires_grad]
        for mine, rate in ((False, lr), (True, config.head_lr)):
            members = [p for p in trained if (id(p) in head) == mine]
            if members:
                groups.append({"params": members, "peak": rate, "weight_decay": found["weight_decay"]})
    return groups


def _added(backbone: Backbone, method: str, config: TuningConfig, seed: int) -> list[nn.Parameter]:
    if method == "prompt":
        return add_prompts(backbone, config.prompt_len, seed)
    if method == "lora":
        return add_lora(backbone, config.lora_rank, config.lora_alpha, seed)
    return []
