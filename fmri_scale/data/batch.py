"""What the loader hands to training: the int8 codes of some clips and the numbers that turn them into signal.

A batch may lie in memory that the loader will fill again (see ring.py): that memory is given back when the last
tensor of the batch is gone, so keep a batch as long as you like, but copy what you want to change.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from fmri_scale.data.ring import Loan


@dataclass
class ClipBatch:
    """B clips of T frames of V in-mask voxels.

    Attributes
    ----------
    codes
        int8 [B, T, V]: q of x = unit * (offset + step * q).
    scale
        float16 [B, 2, V]: offset and step.
    stats
        float16 [B, 2, V] or None: what voxel_z needs (see sharding/format.py); read for that normalisation alone.
    unit, mean, sd, background
        float32 [B]: of the run (see sharding/prepare.py).
    clip_id
        int64 [B]: 63-bit hash of (sample key, start frame); masks are drawn from (seed, epoch, clip id).
    epoch
        int64 [B]: visits of the clip's pool before this one.
    position
        int64 [B]: place in the global stream.
    start_frame
        int64 [B]: first frame, counted from the sample's first.
    keys
        Names of the samples.
    valid
        bool [B]: False for clips that only keep ranks in step during validation and must not be counted.
    loan
        The slot of the loader's memory that codes, scale and stats lie in.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    stats: torch.Tensor | None
    unit: torch.Tensor
    mean: torch.Tensor
    sd: torch.Tensor
    background: torch.Tensor
    clip_id: torch.Tensor
    epoch: torch.Tensor
    position: torch.Tensor
    start_frame: torch.Tensor
    keys: list[str]
    valid: torch.Tensor
    loan: Loan | None = None

    def __len__(self) -> int:
        """Clips."""
        return int(self.codes.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "ClipBatch":
        """Return the batch with its tensors on a device; copies to a GPU need not be waited for."""
        device = torch.device(device)
        asynchronous = non_blocking and device.type == "cuda" and self.loan is not None
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=asynchronous)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        if asynchronous and self.loan is not None:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(device))
            self.loan.busy = lambda: not copied.query()
        return replace(self, **moved)
