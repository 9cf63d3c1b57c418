"""Energy is what the driver counts, over all ranks and restarts; where one rank is not counted, nothing is claimed."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from fmri_scale.training.energy import GpuEnergy, total_energy


class Driver:
    """NVML's calls as their header declares them, with a counter that the test moves."""

    def __init__(self, known: bytes = b"GPU-1234", supported: bool = True) -> None:
        self.known, self.supported, self.millijoules = known, supported, 5_000_000

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle) -> int:
        handle._obj.value = 42
        return 0 if uuid == self.known else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, energy) -> int:
        assert handle.value == 42
        energy._obj.value = self.millijoules
        return 0 if self.supported else 3


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    return torch.device("cuda", 0)


def test_joules_count_from_the_start(gpu):
    driver = Driver()
    energy = GpuEnergy(gpu, driver)
    assert energy.joules() == 0
    driver.millijoules += 7_500
    assert energy.joules() == 7.5


@pytest.mark.parametrize("driver", [Driver(known=b"GPU-other"), Driver(supported=False), object()])
def test_what_is_not_counted_is_none(gpu, driver):
    assert GpuEnergy(gpu, driver).joules() is None


def test_a_cpu_is_not_counted():
    assert GpuEnergy(torch.device("cpu"), Driver()).joules() is None


def test_total_is_of_all_ranks_and_restarts_or_of_none():
    assert total_energy([1.0, 2.0], 10.0) == {"energy_j": 13.0}
    assert total_energy([1.0, None], 10.0) == {}
    assert total_energy([None], 0.0) == {}
