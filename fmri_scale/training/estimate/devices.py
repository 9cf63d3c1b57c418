"""What the hardware of a rank can do: rates, memory and links, from data sheets; a CPU is measured.

EFFICIENCY is the share of a rate that this model's operations reach: narrow matrix products (36 to 288 channels) a
third of the tensor cores' peak, element-wise work most of the memory's bandwidth, the scan most of the issue slots.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels import Windows
from fmri_scale.kernels.scan import scan


@dataclass(frozen=True)
class Device:
    """Rates of one GPU, or of the cores of one CPU rank.

    Attributes
    ----------
    memory : bytes of a rank.
    matmul_bf16, matmul_fp32 : dense matrix products, operations per second, at the efficiency they reach.
    bandwidth : bytes per second of memory, likewise.
    scan_elements : elements (token x channel x state) of a scan per second, forward and backward together.
    launch_s : seconds of the host to start one operation; operations cannot be faster.
    node_link, network_link : bytes per second of a rank to its own machine's ranks, and to other machines.
    """

    name: str
    memory: float
    matmul_bf16: float
    matmul_fp32: float
    bandwidth: float
    scan_elements: float
    launch_s: float
    node_link: float
    network_link: float


MATMUL, MEMORY, ISSUE, LINK = 0.35, 0.8, 0.75, 0.8
"Share of the peak that is reached by narrow matrix products, element-wise work, the scan, and links."
SCAN_SLOTS = (9.1 + 33.9) / 32
"Warp instructions per element, forward and backward, of the scan kernel compiled for sm_90 with 64 + 8 channels."


def _gpu(
    name: str, gb: float, bf16: float, fp32: float, tb_s: float, issue: float, nvlink: float, nic: float
) -> Device:
    """Return a GPU: memory GB; TFLOP/s; TB/s; 1e12 warp instructions/s; GB/s of NVLink and of its network card."""
    return Device(
        name,
        gb * 1e9,
        bf16 * 1e12 * MATMUL,
        fp32 * 1e12 * MATMUL,
        tb_s * 1e12 * MEMORY,
        issue * 1e12 * ISSUE / SCAN_SLOTS,
        5e-6,
        nvlink * 1e9 * LINK,
        nic * 1e9 * LINK,
    )


GPUS = {
    # SXM forms. Issue: multiprocessors x 4 warp instructions x clock. Links in one direction; a 400 (A100: 200) Gbit/s
    # network card for each GPU, as in DGX machines.
    "a100": _gpu("A100 80GB", 80, 312, 19.5, 2.04, 108 * 4 * 1.41e-3, 300, 25),
    "h100": _gpu("H100", 80, 989, 67, 3.35, 132 * 4 * 1.98e-3, 450, 50),
    "h200": _gpu("H200", 141, 989, 67, 4.8, 132 * 4 * 1.98e-3, 450, 50),
}


def full_rates(gpu: str) -> Device | None:
    """Return a GPU by the name its driver gives, at the rates of its data sheet; None for one that is not known."""
    found = next((device for key, device in GPUS.items() if key.upper() in gpu.upper()), None)
    if found is None:
        return None
    return replace(
        found,
        matmul_bf16=found.matmul_bf16 / MATMUL,
        matmul_fp32=found.matmul_fp32 / MATMUL,
        bandwidth=found.bandwidth / MEMORY,
        scan_elements=found.scan_elements / ISSUE,
    )


CPU_LINK = 1e9
"B/s between ranks on CPUs, over loopback or a 10 Gbit/s network."


def find(name: str) -> Device:
    """Return a device by name: a key of GPUS, `cpu`, or empty for what this machine has.

    Raises
    ------
    ConfigError : an unknown name, or a GPU here whose rates are not known.
    """
    if name == "cpu" or (not name and not torch.cuda.is_available()):
        return measure_cpu()
    wanted = name.lower() if name else torch.cuda.get_device_name(0)
    for key, device in GPUS.items():
        if key == wanted or (not name and key.upper() in wanted.upper()):
            memory = torch.cuda.get_device_properties(0).total_memory if not name else device.memory
            return replace(device, memory=memory)
    raise ConfigError(f"--gpu {wanted}: rates are known for {', '.join([*GPUS, 'cpu'])}")


def measure_cpu() -> Device:
    """Return the rates of this process' threads on the machine it runs on, measured in about a second."""
    x, weight = torch.randn(8192, 64), torch.randn(64, 256)
    matmul = 2 * x.shape[0] * weight.numel() / _seconds(lambda: torch.mm(x, weight))
    block, copy = torch.randn(1 << 24), torch.empty(1 << 24)
    bandwidth = 2 * block.nbytes / _seconds(lambda: copy.copy_(block))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("CPU", memory, matmul, matmul, bandwidth, _scan_rate(), 0.0, CPU_LINK, CPU_LINK)


def _scan_rate() -> float:
    """Return elements per second of a scan with its backward pass."""
    windows = Windows((8, 8, 8, 8), (4, 4, 4, 4), (0, 0, 0, 0))
    tokens, width, states = 8**4, 72, 16
    x, dt = torch.rand(1, tokens, width, requires_grad=True), torch.rand(1, tokens, width, requires_grad=True)
    a, d = -torch.rand(width, states), torch.rand(width)
    b, c = torch.rand(1, tokens, states, requires_grad=True), torch.rand(1, tokens, states, requires_grad=True)

    def both() -> None:
        scan(x, dt, a, b, c, d, windows, backend="torch").sum().backward()

    return tokens * width * states / _seconds(both)


def _seconds(call: Callable[[], object]) -> float:
    """Return the least duration of a call over a quarter of a second, after one call to warm up."""
    call()
    best, end = float("inf"), time.perf_counter() + 0.25
    while time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best
