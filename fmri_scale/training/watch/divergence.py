"""Whether all ranks hold the same weights, to the bit: a number made of every parameter's bits, compared now and then.

Ranks that drift apart (a faulty device, a bit that flipped, a step that one rank took and another did not) train on
without any other sign. ZeRO 3 cuts most parameters, so that there is one copy only; those it keeps whole are compared.
"""

import hashlib
import socket
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from fmri_scale.checkpoint.collective import gather
from fmri_scale.errors import TrainingError

_ODD = 0x9E3779B1


@torch.no_grad()
def fingerprints(module: nn.Module) -> dict[str, int]:
    """Return a 64-bit number for every parameter that this rank holds whole; one bit changed changes it."""
    whole = [(name, p) for name, p in module.named_parameters() if p.numel() == getattr(p, "ds_numel", p.numel())]
    if not whole:
        return {}
    numbers = torch.stack([_fingerprint(parameter) for _, parameter in whole]).tolist()
    return {name: number for (name, _), number in zip(whole, numbers, strict=True)}


def check(module: nn.Module, step: int) -> None:
    """Compare the weights of all ranks after a step; every rank calls it.

    Raises
    ------
    TrainingError : they differ; on every rank, naming those that are not with the most, and a parameter.
    """
    mine = fingerprints(module)
    digests = gather(hashlib.sha256(repr(sorted(mine.items())).encode()).hexdigest())
    usual = Counter(digests).most_common(1)[0][0]
    odd = [rank for rank, digest in enumerate(digests) if digest != usual]
    if not odd:
        return
    everyone: list[dict[str, Any]] = gather({"host": socket.gethostname(), "weights": mine})
    wanted, found = everyone[digests.index(usual)]["weights"], everyone[odd[0]]["weights"]
    first = next(name for name in wanted if found.get(name) != wanted[name])
    names = ", ".join(f"{rank} ({everyone[rank]['host']})" for rank in odd)
    raise TrainingError(
        f"after step {step} the weights of rank {names} differ from the other ranks' (first in {first}): look at that "
        "machine's memory and device; start again from a checkpoint before this step"
    )


def _fingerprint(parameter: Tensor) -> Tensor:
    """Return the sum over values of their bits times an odd number by position, modulo 2^64."""
    bits = parameter.detach().reshape(-1).view(torch.int32).long()
    places = torch.arange(len(bits), device=bits.device) * (2 * _ODD) + 1
    return (bits * places).sum()
