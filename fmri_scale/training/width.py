"""One learning rate for all widths of a model: muP, the maximal update parametrisation.

A rate that is best for the base model (36 channels) is too large for wider ones: each step of Adam moves every weight
by about the rate, so what a matrix of n inputs does to its output moves by n times that. With `optim.base_width` the
rates of matrices whose inputs grow with the width shrink by (inputs at the base width) / (inputs); the others keep
theirs: embedding, norms, biases, positions, the scan's A and D. Weight decay of a matrix grows as its rate shrinks, so
that their product stays (Yang et al. 2022, Tensor Programs V, table 8, column Adam; decay as in Wortsman et al. 2023).
First weights stay those of the published model, whose variances are muP's for matrices; the head counts as one of
them, its outputs (216 values of a patch) being no fewer than its inputs. Depth is not scaled for: the presets differ
little. `test_coordinate_check` shows what it does.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fmri_scale.config import Config, ModelConfig
from fmri_scale.models import MaskedAutoencoder, parameter_groups

PREFIX = "model."
"The engine's module holds the model under this name."


def optimizer_groups(module: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Return the optimizer's groups of a module that holds the model: decayed or not, times scale of the rate.

    Each has `lr_scale`, by which the schedule's rate is multiplied. Their order depends on the configuration alone.
    """
    scales = rate_scales(config)
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = []
    for group in parameter_groups(module, config.optim.weight_decay):
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            # what the masked autoencoder lacks, the projector of a contrastive objective, keeps the rate as it is
            scale = scales.get(name_of[id(parameter)].removeprefix(PREFIX), 1.0)
            by_scale.setdefault(scale, []).append(parameter)
        for scale, parameters in sorted(by_scale.items(), reverse=True):
            decay = group["weight_decay"] / scale
            groups.append({**group, "params": parameters, "weight_decay": decay, "lr_scale": scale})
    return groups


def rate_scales(config: Config) -> dict[str, float]:
    """Return the scale of the rate of every parameter of the model, by its name; 1 for all without `base_width`."""
    shapes = _shapes(config.model)
    base = _shapes(replace(config.model, embed_dim=config.optim.base_width or config.model.embed_dim))
    matrices = {f"{name}.weight" for name, kind in _modules(config.model) if issubclass(kind, nn.Linear)}
    return {name: base[name][1] / shape[1] if name in matrices else 1.0 for name, shape in shapes.items()}


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in MaskedAutoencoder(config).named_parameters()}


def _modules(config: ModelConfig) -> list[tuple[str, type]]:
    with torch.device("meta"):
        return [(name, type(module)) for name, module in MaskedAutoencoder(config).named_modules()]
