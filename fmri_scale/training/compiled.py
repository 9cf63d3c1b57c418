"""torch.compile of the model's blocks, and CUDA graphs of what it makes: options, both off by default.

Blocks are compiled one by one: equal ones share their code, the first step waits a minute rather than many, and
DeepSpeed's hooks stay outside. Not with ZeRO 3, whose hooks fetch the weights inside (config/check.py).
"""

from typing import Any

import torch
from torch import nn

from fmri_scale.config import EngineConfig
from fmri_scale.errors import ConfigError
from fmri_scale.models.block import Block

VARIANTS = 128
"Versions of a block's code that may be kept: stage, shift, training or not. torch's 8 would give up on the rest."


def compile_blocks(module: nn.Module, engine: EngineConfig, device: torch.device) -> int:
    """Let the blocks of a module be compiled when they are first called; return how many there are.

    Raises
    ------
    ConfigError : CUDA graphs are wanted on a device that has none.
    """
    if engine.cuda_graphs and device.type != "cuda":
        raise ConfigError(f"engine.cuda_graphs=true: a {device.type.upper()} has no CUDA graphs; set it to false")
    if engine.compile == "off":
        return 0
    torch._dynamo.config.cache_size_limit = max(VARIANTS, torch._dynamo.config.cache_size_limit)
    options: dict[str, Any] = {"mode": "reduce-overhead"} if engine.cuda_graphs else {}
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    for block in blocks:
        block.compile(backend=engine.compile, dynamic=False, **options)
    if engine.cuda_graphs:
        # what a graph gave is overwritten when it runs again: each micro-step says that the one before is done with
        module.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
    return len(blocks)
