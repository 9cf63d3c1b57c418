"""The energy that this rank's GPU has used since the run started it, as NVIDIA's driver counts it (NVML).

In: a device. Out: joules, or None where nobody counts: CPUs, other vendors, GPUs before Volta, MIG slices. The library
is loaded by name and asked through ctypes, so nothing has to be installed.
"""

import ctypes
from typing import Any

import torch

LIBRARY = "libnvidia-ml.so.1"
OK = 0
"NVML's return code for success."


class GpuEnergy:
    """Counts from when it is made.

    Parameters
    ----------
    device : of this rank.
    library : NVML, loaded by its usual name if None.
    """

    def __init__(self, device: torch.device, library: Any = None) -> None:
        self._library, self._handle = None, ctypes.c_void_p()
        if device.type == "cuda":
            self._open(device, library)
        self._start = self._total_j()

    def joules(self) -> float | None:
        """Return the energy used since then, or None where it is not counted."""
        now = self._total_j()
        return None if now is None or self._start is None else now - self._start

    def _open(self, device: torch.device, library: Any) -> None:
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        try:
            library = library or ctypes.CDLL(LIBRARY)
            name = f"GPU-{uuid}".encode()
            known = library.nvmlInit_v2() == OK
            if known and library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._handle)) == OK:
                self._library = library
        except (OSError, AttributeError):  # no driver, or one without these calls
            self._library = None

    def _total_j(self) -> float | None:
        if self._library is None:
            return None
        millijoules = ctypes.c_ulonglong()
        code = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(millijoules))
        return millijoules.value / 1000 if code == OK else None


def total_energy(parts: list[float | None], before: float) -> dict[str, float]:
    """Return `{"energy_j": ...}` of all ranks and of what went before; empty where a rank's is not counted."""
    counted = [part for part in parts if part is not None]
    return {"energy_j": before + sum(counted)} if counted and len(counted) == len(parts) else {}
