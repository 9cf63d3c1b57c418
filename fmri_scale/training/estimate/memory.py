"""Bytes of one rank by part: what stays, and what comes and goes within a step.

Parameters, gradients and optimizer state are fp32 at every ZeRO stage (training/ds_config.py). u is the bytes of all
parameters, n the number of ranks. What stays: parameters u (ZeRO 3: u/n), Adam's moments 2u and, with ZeRO 1 to 3, the
optimizer's own copy u; these two divided by n; where wanted, an average of the weights u/n. What comes and goes:
activations until the end of the forward pass; gradients, communication buckets and the optimizer's copies after it.

On a GPU both share the same memory, so the larger counts. A CPU's C library gives back only a part of what is freed:
the smaller counts too, by KEPT. TRANSIENT was measured with DeepSpeed 0.19.8 (61 M parameters, one and two ranks,
buckets of 5 M and 50 M elements, resident memory); for GPUs it is DeepSpeed's allocations, counted in its source.
"""

from dataclasses import dataclass, replace

from fmri_scale.config import Config, ModelConfig
from fmri_scale.models import cost
from fmri_scale.models.shapes import decoder_stages, encoder_stages
from fmri_scale.training.ds_config import MOST_BUCKET
from fmri_scale.training.estimate.patches import computed_patches
from fmri_scale.training.objective import reads_codes

FLOAT = 4
"Bytes of a parameter, a gradient, a moment."
RUNTIME = {"cpu": 0.63e9, "gpu": 0.0}
"Resident bytes of Python, torch, DeepSpeed and the loader's code; a GPU's peak is counted in tensors alone."
KEPT = 0.75
"Share of freed memory that a CPU process keeps."
TRANSIENT = {
    # stage: multiples of u, of u/n, of the bucket
    "cpu": {0: (1.56, 0.0, 0.0), 1: (2.75, 2.8, 0.5), 2: (2.3, 3.0, 0.5), 3: (5.8, 0.0, 1.4)},
    "gpu": {0: (2.0, 0.0, 0.0), 1: (1.0, 2.0, 1.0), 2: (0.0, 2.0, 2.0), 3: (0.0, 2.0, 2.0)},
}
ZERO3_LIVE = 100_000_000
"Parameters that ZeRO 3 has gathered at a time on a GPU: those in use and those fetched ahead (prefetch bucket 5e7)."


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes
    ----------
    parameters, optimizer : stay for the whole run; the average of the weights counts to the optimizer. What is
        offloaded from a GPU is not there.
    gradients_and_buffers : gradients, communication buckets, copies made by the optimizer's step.
    activations : kept by the forward pass for the backward pass, with the volumes themselves.
    loader : clips read ahead, in the machine's memory (on a GPU not part of `peak`).
    runtime : the libraries.
    peak : the most at any moment.
    """

    parameters: float
    optimizer: float
    gradients_and_buffers: float
    activations: float
    loader: float
    runtime: float
    peak: float


def memory(config: Config, world_size: int, kind: str) -> Memory:
    """Return the memory of a rank.

    Parameters
    ----------
    kind : `cpu` or `gpu`.
    """
    stage = config.engine.zero_stage
    u = cost(config.model).total.parameters * FLOAT
    share = u / world_size
    parameters = share if stage == 3 else u
    optimizer = (2 * u if stage == 0 else 3 * share) + (share if config.optim.ema_decay else 0.0)
    if kind == "gpu" and config.engine.offload_optimizer != "none":
        optimizer -= 3 * share
    if kind == "gpu" and config.engine.offload_parameters != "none":
        parameters = 0.0
    bucket = min(u, MOST_BUCKET * FLOAT)
    of_u, of_share, of_bucket = TRANSIENT[kind][stage]
    step = of_u * u + of_share * share + of_bucket * bucket
    if stage == 3 and kind == "gpu":
        step += min(u, ZERO3_LIVE * FLOAT)
    kept = activations(config)
    loader = config.data.prefetch_mb * 1e6 if config.data.num_readers else 0.0
    stays = RUNTIME[kind] + parameters + optimizer + (loader if kind == "cpu" else 0.0)
    peak = stays + max(kept, step) + (KEPT * min(kept, step) if kind == "cpu" else 0.0)
    return Memory(parameters, optimizer, step, kept, loader, RUNTIME[kind], peak)


def activations(config: Config) -> float:
    """Return the bytes that a micro-batch's clips and what the forward pass keeps of them take.

    In bf16 everything kept is in bf16. Codes are a byte a voxel of the brain, at most; volumes are fp32. For contrast
    several views of a clip are encoded at once, beside what is reconstructed.
    """
    model = config.model
    width = 2 if config.engine.dtype == "bf16" else 4
    voxels = model.in_channels * model.num_frames * model.image_size[0] * model.image_size[1] * model.image_size[2]
    codes, views = reads_codes(config), config.objective.views
    found = cost(model, from_codes=codes, patches=computed_patches(model))
    values: float = found.total.kept_values if config.objective.reconstruction else 0
    values += views * found.encoder.kept_values
    values += _one_block(model) * max(1, views) if model.checkpoint_blocks else 0
    return config.optim.micro_batch * (width * values + (1 if codes else FLOAT) * voxels * max(1, views))


def _one_block(model: ModelConfig) -> float:
    """Return the values that the largest block keeps while it is recomputed."""
    parts = cost(replace(model, checkpoint_blocks=False), patches=computed_patches(model)).parts
    encoder = [parts[f"encoder.{i}"].kept_values / s.depth for i, s in enumerate(encoder_stages(model))]
    decoder = [parts[f"decoder.{i}"].kept_values / s.depth for i, s in enumerate(decoder_stages(model))]
    return max(encoder + decoder)


def checkpoint_bytes(config: Config) -> float:
    """Return the bytes of a checkpoint on disk: weights, the optimizer's copy of them, two moments.

    ZeRO 0 and 3 write weights once; 1 and 2 twice. An average of the weights is one more.
    """
    copies = (4 if config.engine.zero_stage in (1, 2) else 3) + (config.optim.ema_decay > 0)
    return copies * FLOAT * cost(config.model).total.parameters
