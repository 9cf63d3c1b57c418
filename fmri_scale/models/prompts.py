"""Learnable tokens before every window of the encoder's blocks, for a task: task-specific prompt tuning.

As published (Wang et al. 2025, NeuroSTORM, arXiv 2506.11167, task-specific prompt tuning; in the published code of May
2026 `models/neurostorm.py`, `forward_part1`, and `main.py`): each block of the encoder has tokens of its own, which
stand before the normalised tokens of every window as the mixer's input and are taken off its output; they are drawn
from a normal of 0.02. Of the model they alone are trained, with the head; the decoder has none. It is the deep form of
visual prompt tuning (Jia et al. 2022, section 3.2).
"""

import torch
from torch import nn

from fmri_scale.models.init import first_values, generator
from fmri_scale.models.mixer import Mixer


def add_prompts(backbone: nn.Module, prompt_len: int, seed: int) -> list[nn.Parameter]:
    """Give every mixer of an encoder prompts, drawn as those of a model that is built with them.

    Parameters
    ----------
    backbone : the encoder, changed in place; prompts that it has already are kept.
    prompt_len : tokens a block.
    seed : decides their first values, with the name of each.

    Returns
    -------
    parameters float32 `[prompt_len, width of the stage]`, one a block.

    Raises
    ------
    ValueError : the encoder has prompts of another length.
    """
    mixers = [(name, module) for name, module in backbone.named_modules() if isinstance(module, Mixer)]
    for name, mixer in mixers:
        if mixer.prompt is None:
            shape, full_name = (prompt_len, mixer.in_proj.in_features), f"backbone.{name}.prompt"
            values = first_values(mixer, full_name, shape, generator(seed, full_name))
            mixer.prompt = nn.Parameter(values.to(mixer.in_proj.weight))
        elif len(mixer.prompt) != prompt_len:
            raise ValueError(f"{name} has {len(mixer.prompt)} prompts; expected {prompt_len}")
    return [mixer.prompt for _, mixer in mixers if isinstance(mixer.prompt, torch.Tensor)]
