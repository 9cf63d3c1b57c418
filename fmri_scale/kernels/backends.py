"""Which implementation runs: `triton` (this package's kernels), `torch` (CPU forms and references), `mamba_ssm`.

The choice is made from the requested name and the device, is logged once, and is never changed silently: a backend
that was asked for and cannot run is an error that says what to do.
"""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

from fmri_scale.errors import ConfigError
from fmri_scale.log import get_logger

BACKENDS = ("auto", "torch", "triton", "mamba_ssm")
MAMBA_HINT = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"


def select_backend(requested: str, device: torch.device | str) -> str:
    """Name the backend that runs on a device, and log it (once for each answer).

    Parameters
    ----------
    requested : str
        `auto`, `torch`, `triton` or `mamba_ssm`. `auto` is triton on a CUDA device and torch elsewhere.
    device : torch.device or str
        Where the tensors are.

    Returns
    -------
    str
        `torch`, `triton` or `mamba_ssm`.

    Raises
    ------
    ConfigError
        When the requested backend is unknown or cannot run on the device.
    """
    kind = torch.device(device).type
    chosen = resolve(requested, kind)
    _log_once(requested, chosen, kind)
    return chosen


@functools.lru_cache(maxsize=32)
def resolve(requested: str, kind: str) -> str:
    """`select_backend` for a device type, without the log line."""
    if requested not in BACKENDS:
        raise ConfigError(f"kernel backend {requested!r}: expected one of {', '.join(BACKENDS)}")
    if requested == "auto":
        return "triton" if kind == "cuda" and has_triton() else "torch"
    if requested == "triton" and not has_triton():
        raise ConfigError("kernel backend triton: the package is not installed; pip install triton, or take torch")
    if requested == "triton" and kind != "cuda" and not interpreting():
        raise ConfigError(
            f"kernel backend triton on {kind}: it needs a CUDA device (or TRITON_INTERPRET=1, which is slow and "
            "meant for tests); take auto or torch"
        )
    if requested == "mamba_ssm":
        _require_mamba(kind)
    return requested


def implementation(operation: str, backend: str, device: torch.device) -> ModuleType:
    """The module of an operation (`scan`, `conv`, ...) that runs for a requested backend on a device.

    Each has `forward` and, where the operation has a gradient, `backward`: `cpu` on a CPU, for torch on another device
    `reference` (scan, conv) or the same `cpu`, `triton`, and `mamba` (the scan alone; elsewhere it means auto).
    """
    wanted = "auto" if backend == "mamba_ssm" and operation != "scan" else backend
    chosen = resolve(wanted, device.type)
    plain = "reference" if device.type != "cpu" and operation in ("scan", "conv") else "cpu"
    name = {"torch": plain, "mamba_ssm": "mamba"}.get(chosen, chosen)
    return importlib.import_module(f"fmri_scale.kernels.{operation}.{name}")


def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_mamba() -> bool:
    """Whether mamba_ssm was installed with its Mamba-1 CUDA scan."""
    return importlib.util.find_spec("selective_scan_cuda") is not None


def _require_mamba(kind: str) -> None:
    if kind != "cuda":
        raise ConfigError(f"kernel backend mamba_ssm on {kind}: its scan runs on CUDA devices only; take auto or torch")
    if not has_mamba():
        raise ConfigError(
            "kernel backend mamba_ssm: its CUDA scan (selective_scan_cuda) is not installed. Since 2.3.2 the "
            f"package leaves it out unless built with: {MAMBA_HINT}"
        )


@functools.lru_cache(maxsize=32)
def _log_once(requested: str, chosen: str, kind: str) -> None:
    why = "as requested" if requested == chosen else f"chosen for {requested}"
    mode = " in the interpreter" if chosen == "triton" and kind != "cuda" else ""
    get_logger(__name__).info("kernels: %s on %s%s (%s)", chosen, kind, mode, why)
