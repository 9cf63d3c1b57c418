"""How fast a run is: clips and frames per second, share of the hardware's peak, waiting for data, memory.

Time counts the training steps alone, not checkpoints or pictures. MFU is the model's operations (recomputation left
out) over the peak of dense bf16 matrix products, whatever the run's precision; unknown hardware has none.
"""

import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fmri_scale.config import ModelConfig
from fmri_scale.models import cost
from fmri_scale.training.estimate.devices import full_rates
from fmri_scale.training.estimate.speed import least_clip_seconds

PEAK_BF16 = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "GH200": 9.89e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "A10G": 7.0e13,
    "A10": 1.25e14,
    "V100": 1.25e14,
}
"Operations per second of dense bf16 (V100: fp16) matrix products, from NVIDIA's data sheets; first match counts."


def peak_flops(device: torch.device) -> float | None:
    """Return the peak of a device in operations per second; None for CPUs and unknown GPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16.items() if part in name), None)


def least_seconds(model: ModelConfig, device: torch.device, patches: Sequence[int] | None = None) -> float | None:
    """Return the least seconds of a clip's forward and backward pass on a device; None for CPUs and unknown GPUs."""
    known = full_rates(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if known is None else least_clip_seconds(model, known, patches)


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory this process has held so far, in 1e9 bytes: of the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return _peak_resident() / 1e9


def _peak_resident() -> int:
    """Return bytes. Linux's `ru_maxrss` also counts the process that started this one, the kernel's own mark does not.

    Elsewhere there is only the former (in bytes on macOS).
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


class Speed:
    """Adds up steps between two rows of the log; `patches` are those that are computed of each stage, None: all."""

    def __init__(
        self,
        model: ModelConfig,
        global_batch: int,
        world_size: int,
        device: torch.device,
        patches: Sequence[int] | None = None,
    ) -> None:
        total = cost(replace(model, checkpoint_blocks=False), patches=patches).total
        self._flops = total.forward_flops + total.backward_flops
        self._frames, self._clips, self._world_size = model.num_frames, global_batch, world_size
        self._device, self._peak = device, peak_flops(device)
        self._least_s = least_seconds(model, device, patches)
        self._reset()

    def add(self, seconds: float, wait_s: float) -> None:
        """Count one step and how much of it the slowest rank waited for data."""
        self._steps += 1
        self._seconds += seconds
        self._wait_s += wait_s

    def saved(self, seconds: float) -> None:
        """Count a checkpoint, for which the steps have waited."""
        self._saving_s += seconds

    @property
    def frames_per_s(self) -> float:
        """Frames of all ranks per second since the last row."""
        return self._steps * self._clips * self._frames / max(self._seconds, 1e-9)

    def row(self) -> dict[str, float | None]:
        """Return the figures since the last row, and begin anew."""
        rate = self.frames_per_s
        flops = rate / self._frames * self._flops / self._world_size
        row = {
            "step_s": self._seconds / max(1, self._steps),
            "frames_per_s": rate,
            "frames_per_s_per_rank": rate / self._world_size,
            "model_tflops_per_rank": flops / 1e12,
            "mfu": flops / self._peak if self._peak else None,
            "roofline_fraction": rate / self._frames / self._world_size * self._least_s if self._least_s else None,
            "data_wait_fraction": self._wait_s / max(self._seconds, 1e-9),
            "checkpoint_s": self._saving_s,
            "peak_memory_gb": peak_memory_gb(self._device),
        }
        self._reset()
        return row

    def _reset(self) -> None:
        self._steps, self._seconds, self._wait_s, self._saving_s = 0, 0.0, 0.0, 0.0
