"""Seconds of computing in an optimizer step: matrix products, scan and element-wise work one after the other.

Each at the rate that it reaches on the device; a GPU is never faster than its host starts operations. Element-wise
work is counted as bytes moved: of a block per token and channel, of the voxels for decoding, embedding and the loss.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from fmri_scale.config import Config, ModelConfig
from fmri_scale.models import cost
from fmri_scale.models.cost import SCAN_BACKWARD, SCAN_FORWARD
from fmri_scale.models.shapes import decoder_stages, encoder_stages
from fmri_scale.training.estimate.devices import Device
from fmri_scale.training.estimate.patches import computed_patches

BLOCK_BYTES = 390
"Bytes moved per token, channel and block, forward and backward in bf16, where each operation is a kernel of its own."
VOXEL_BYTES = 84
"Bytes moved per voxel and frame for decoding, patches, prediction and loss in fp32, likewise."
FP32_FACTOR = 1.9
"The same work in fp32 over bf16; statistics and the scan's state are fp32 in both."
BLOCK_LAUNCHES, OTHER_LAUNCHES = 110, 350
"Operations started per block, and besides, in a forward and backward pass."
ADAM_BYTES = 32
"Bytes read and written per parameter by the optimizer's step, norm and clipping included."
LEAST_BLOCK_BYTES = 5 * 2
"Bytes per token, channel and block that no code can save: input and output, input again, two gradients, in bf16."


def scan_elements(model: ModelConfig, patches: Sequence[int] | None = None) -> int:
    """Return token x channel x state of all scans in one clip's forward pass, padding included; `patches` as `cost`."""
    return model.expand * model.state_dim * sum(_padded(model, patches).values())


def compute_seconds(config: Config, device: Device, world_size: int) -> float:
    """Return the seconds of computing in an optimizer step of one rank."""
    model = config.model
    bf16 = config.engine.dtype == "bf16"
    patches = computed_patches(model)
    total, elements = cost(model, patches=patches).total, scan_elements(model, patches)
    again = SCAN_FORWARD if model.checkpoint_blocks else 0
    products = total.forward_flops + total.backward_flops - elements * (SCAN_FORWARD + SCAN_BACKWARD + again)
    scans = elements * (4 / 3 if model.checkpoint_blocks else 1)
    voxels = model.num_frames * math.prod(model.image_size)
    moved = BLOCK_BYTES * sum(_padded(model, patches).values()) * (1 if bf16 else FP32_FACTOR) + VOXEL_BYTES * voxels
    clip_s = products / (device.matmul_bf16 if bf16 else device.matmul_fp32)
    clip_s += scans / device.scan_elements + moved / device.bandwidth
    micro_steps = config.optim.global_batch / (config.optim.micro_batch * world_size)
    launches = BLOCK_LAUNCHES * sum(s.depth for s in _stages(model)) + OTHER_LAUNCHES
    micro_s = max(config.optim.micro_batch * clip_s, launches * device.launch_s)
    shards = world_size if config.engine.zero_stage else 1
    return micro_steps * micro_s + ADAM_BYTES * total.parameters / shards / device.bandwidth


def least_clip_seconds(model: ModelConfig, device: Device, patches: Sequence[int] | None = None) -> float:
    """Return the roofline of a clip's forward and backward pass: the seconds of what binds, all else hidden behind it.

    What binds is the longest of: matrix products in bf16; the scans, by the instructions of the compiled kernel; the
    bytes that must be moved. Recomputation is not work. `device` has its full rates (devices.full_rates), `patches` are
    those of `cost`.
    """
    plain = replace(model, checkpoint_blocks=False)
    total, elements = cost(plain, patches=patches).total, scan_elements(plain, patches)
    products = total.forward_flops + total.backward_flops - elements * (SCAN_FORWARD + SCAN_BACKWARD)
    moved = LEAST_BLOCK_BYTES * sum(_padded(plain, patches).values())
    return max(products / device.matmul_bf16, elements / device.scan_elements, moved / device.bandwidth)


def _padded(model: ModelConfig, patches: Sequence[int] | None = None) -> dict[int, int]:
    """Return, by stage, tokens x channels of its blocks for one clip, on grids padded to whole windows."""
    return {i: sum(s.padded_tokens(model.num_frames)) * s.width for i, s in enumerate(_stages(model, patches))}


def _stages(model: ModelConfig, patches: Sequence[int] | None = None) -> list:
    return [*encoder_stages(model, patches), *decoder_stages(model, patches)]
