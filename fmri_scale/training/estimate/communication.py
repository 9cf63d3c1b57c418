"""Bytes and time of the exchange between ranks in an optimizer step, by ZeRO stage.

Bytes are what a rank sends with ring algorithms, in fp32: an all-reduce of u bytes over n ranks sends 2 u (n-1)/n, a
reduce-scatter or an all-gather half of that. ZeRO 2 and 3 reduce in every micro-step, ZeRO 3 gathers the parameters for
every forward and every backward pass.
"""

import math
from dataclasses import dataclass

from fmri_scale.training.estimate.devices import Device

LATENCY_S = 2e-5
"Seconds that one hop of a collective takes on any link."
OVERLAP = 0.5
"Share of the computing time in which ZeRO 3 can fetch parameters ahead; stages 0 to 2 reduce after the backward pass."


@dataclass(frozen=True)
class Communication:
    """Exchange of one rank in one optimizer step: bytes sent, seconds on the links, seconds that computing waits."""

    bytes_sent: float
    link_s: float
    exposed_s: float


def bytes_sent(u: float, stage: int, world_size: int, micro_steps: int) -> float:
    """Return the bytes that a rank sends in an optimizer step.

    Parameters
    ----------
    u : bytes of all parameters in fp32.
    micro_steps : forward passes of a rank per optimizer step.
    """
    half = u * (world_size - 1) / world_size
    return half * {0: 2, 1: 2, 2: micro_steps + 1, 3: 3 * micro_steps}[stage]


def communication(
    u: float, stage: int, world_size: int, micro_steps: int, ranks_per_node: int, device: Device, compute_s: float
) -> Communication:
    """Return the exchange of an optimizer step.

    Parameters
    ----------
    compute_s : seconds of computing in the step, which can hide a part of it.
    """
    sent = bytes_sent(u, stage, world_size, micro_steps)
    several_nodes = world_size > ranks_per_node
    link = device.network_link if several_nodes else device.node_link
    operations = {0: 1, 1: 2, 2: micro_steps + 1, 3: 3 * micro_steps}[stage]
    hops = math.ceil(math.log2(world_size)) if world_size > 1 else 0
    seconds = sent / link + operations * hops * LATENCY_S
    exposed = max(0.0, seconds - OVERLAP * compute_s) if stage == 3 else seconds
    return Communication(sent, seconds, exposed)
