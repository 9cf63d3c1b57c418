"""Masks without memory: a keyed bijection decides which units of a clip are hidden.

A mask depends on (seed, epoch, clip id) alone: not on the rank, the batch, the device or where a run was resumed.
`masked_units` is the numpy definition, `unit_mask` what a training step calls; `permute` and `unpermute` are the
bijection itself. Which tokens a unit holds is the caller's matter.
"""

import torch

from fmri_scale.kernels.mask import cpu
from fmri_scale.kernels.mask.op import unit_mask_op
from fmri_scale.kernels.mask.reference import feistel_shape, masked_units, unit_key

__all__ = ["masked_units", "permute", "unit_mask", "unit_order", "unpermute"]


def unit_mask(
    seed: int,
    epoch: int | torch.Tensor,
    clip_ids: torch.Tensor,
    n: int,
    k: int,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Choose k of n units of each clip.

    Parameters
    ----------
    seed : int
        Seed of the run, 64 bits.
    epoch : int or Tensor
        Epoch of all clips, or int64 `(B,)`.
    clip_ids : Tensor
        int64 `(B,)`.
    n, k : int
        Units of a clip, and how many of them are hidden.
    device : torch.device or str, optional
        Where to draw; that of `clip_ids` if None.
    backend : str
        `auto`, `torch` or `triton`.

    Returns
    -------
    Tensor
        bool `(B, n)`, True where hidden, exactly k a row.

    Raises
    ------
    ValueError
        When k is not in 0..n or n not in 1..2**31.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} units: expected 0 to {n}")
    feistel_shape(n)
    clip_ids = clip_ids.to(device=device, dtype=torch.int64) if device is not None else clip_ids.to(torch.int64)
    if not isinstance(epoch, torch.Tensor):
        epoch = torch.full_like(clip_ids, epoch)
    return unit_mask_op(epoch.to(clip_ids), clip_ids, seed, n, k, backend)


def unit_order(
    seed: int, epoch: int | torch.Tensor, clip_ids: torch.Tensor, n: int, units: torch.Tensor | None = None
) -> torch.Tensor:
    """Place of units in each clip's random order of n, int64 `(B, m)`: `unit_mask` hides those whose place is below k.

    For masks that take units in this order until something else than their number is reached. Arguments as there;
    `units` are int64 `(m,)`, all of them if None.
    """
    feistel_shape(n)
    clip_ids = clip_ids.to(torch.int64)
    epochs = torch.as_tensor(epoch, dtype=torch.int64, device=clip_ids.device).expand_as(clip_ids)
    units = torch.arange(n, device=clip_ids.device) if units is None else units
    return cpu.permute(units.expand(len(clip_ids), -1), cpu.unit_keys(seed, epochs, clip_ids), n)


def permute(seed: int, epoch: int, clip_id: int, n: int, units: torch.Tensor) -> torch.Tensor:
    """Images of units (int64, in [0, n), any shape) under a clip's bijection: a random order of all n."""
    return _map(seed, epoch, clip_id, n, units, inverse=False)


def unpermute(seed: int, epoch: int, clip_id: int, n: int, places: torch.Tensor) -> torch.Tensor:
    """Units whose images are `places`; of `arange(k)` these are the k hidden units."""
    return _map(seed, epoch, clip_id, n, places, inverse=True)


def _map(seed: int, epoch: int, clip_id: int, n: int, values: torch.Tensor, inverse: bool) -> torch.Tensor:
    key = torch.tensor([unit_key(seed, epoch, clip_id)], device=values.device)
    return cpu.permute(values.reshape(1, -1), key, n, inverse).view(values.shape)
