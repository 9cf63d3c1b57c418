"""Which parameters the optimizer decays: the matrices of linear maps and the taps of convolutions, nothing else."""

from typing import Any

from torch import nn

from fmri_scale.models.mixer import Mixer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups for an optimizer, decayed and not decayed (norms, biases, embeddings, A_log, D, mask tokens).

    Decided by the kind of module that owns a parameter, not by its shape, which ZeRO-3 hides.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = isinstance(module, nn.Linear) and name == "weight"
            taps = isinstance(module, Mixer) and name == "conv_weight"
            (decayed if matrix or taps else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "name": "decayed"},
        {"params": plain, "weight_decay": 0.0, "name": "plain"},
    ]
