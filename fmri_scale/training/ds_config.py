"""DeepSpeed's configuration, derived from ours: no fact stands twice, and its silent defaults are spelled out.

`engine.dtype: bf16` does not use DeepSpeed's bf16 mode, which stores the parameters themselves in bf16: state-space
models are sensitive to that (Mamba's README, "Precision"), gradients would accumulate in bf16 unless told
otherwise, and ZeRO 0 could not be told. Parameters, gradients, reductions and optimizer state are fp32 at every
stage; the forward pass runs under bf16 autocast (training/objective.py), which is what "fp32 master weights" is for.
"""

from typing import Any

import torch

from fmri_scale.config import Config
from fmri_scale.errors import ConfigError
from fmri_scale.models import cost

MOST_BUCKET = 50_000_000
"Elements of a communication bucket (200 MB). DeepSpeed's default of 5e8 allocates 2 GB a step for any small model."


def accumulation(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Return the forward passes of each rank per optimizer step.

    Raises
    ------
    ConfigError : the global batch is not a whole number of micro-batches on every rank.
    """
    if global_batch % (micro_batch * world_size):
        fitting = sorted({m * world_size for m in range(1, global_batch + 1) if global_batch % (m * world_size) == 0})
        remedy = (
            f"choose optim.micro_batch from {', '.join(str(f // world_size) for f in fitting)}"
            if fitting
            else f"choose optim.global_batch as a multiple of {world_size * micro_batch}"
        )
        raise ConfigError(
            f"optim.global_batch={global_batch} is not a multiple of optim.micro_batch={micro_batch} times "
            f"{world_size} ranks: {remedy}"
        )
    return global_batch // (micro_batch * world_size)


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """Return the configuration to give to `deepspeed.initialize`.

    The optimizer and the schedule are ours (training/build.py, training/schedule.py) and do not appear. With ZeRO 0
    clipping is ours too, because DeepSpeed 0.19.8 applies a non-finite gradient there (training/step.py).
    """
    optim, engine = config.optim, config.engine
    bucket = min(cost(config.model).total.parameters, MOST_BUCKET)
    return {
        "train_batch_size": optim.global_batch,
        "train_micro_batch_size_per_gpu": optim.micro_batch,
        "gradient_accumulation_steps": accumulation(optim.global_batch, optim.micro_batch, world_size),
        "gradient_clipping": optim.clip_grad if engine.zero_stage else 0.0,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            **_offload(config),
        },
        # an optimizer that is offloaded to the CPU is torch's too: DeepSpeed's own needs a compiler on every node
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "checkpoint": {"tag_validation": "Fail"},
        "steps_per_print": None,
    }


def _offload(config: Config) -> dict[str, Any]:
    """Return where ZeRO keeps what does not stay on the device."""
    engine = config.engine
    wanted = {"offload_optimizer": engine.offload_optimizer, "offload_param": engine.offload_parameters}
    pinned = torch.cuda.is_available()
    return {
        key: {"device": place, "pin_memory": pinned, **({"nvme_path": engine.offload_dir} if place == "nvme" else {})}
        for key, place in wanted.items()
        if place != "none"
    }
