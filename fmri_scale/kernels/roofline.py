"""What binds a kernel: memory, tensor cores, special functions or issue slots; and how fast it could be at best.

A `Work` counts what one call must do; `floor` divides each count by what a device does in a second and takes the
largest. Counts follow from shapes: bytes are each input read once and each output written once, exponentials and
products those of the algorithm. Issue slots are what the compiled code spends (measured by compiling, see `aot`), so
a floor with slots is the best that this code could reach, and one without is the best that any code could.
"""

from dataclasses import dataclass, fields

from fmri_scale.kernels.conv.cases import ConvCase
from fmri_scale.kernels.scan.cases import ScanCase

SCAN_SLOTS = {"forward": 322 / 72, "backward": 1175 / 72}
"Warp instructions a token and channel of 16 states on sm_90 (benchmarks/results/static.md); others in proportion."


@dataclass(frozen=True)
class Device:
    """Rates of a GPU, per second."""

    name: str
    bytes: float
    "Device memory, bytes."
    flops: float
    "Dense bf16 matrix products, operations."
    exps: float
    "Special functions (exponential, reciprocal), lanes."
    slots: float
    "Warp instructions issued."


def _device(name: str, bytes_: float, flops: float, multiprocessors: int, clock: float) -> Device:
    """16 special-function lanes and 4 warp instructions a clock and multiprocessor (compute capability 8.0 to 10.0)."""
    return Device(name, bytes_, flops, 16 * multiprocessors * clock, 4 * multiprocessors * clock)


DEVICES = {
    "H200": _device("H200", 4.3e12, 790e12, 132, 1.98e9),  # memory and products as measured on one; others nominal
    "H100": _device("H100", 3.0e12, 790e12, 132, 1.98e9),
    "A100": _device("A100", 1.75e12, 270e12, 108, 1.41e9),
    "B200": _device("B200", 7.0e12, 1800e12, 148, 1.9e9),
}
"Nominal figures of the vendor's data sheets at about 90 % (memory, products) unless said otherwise."


@dataclass(frozen=True)
class Work:
    """What one call has to do."""

    bytes: float = 0.0
    flops: float = 0.0
    exps: float = 0.0
    slots: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        """Two calls one after the other, as one perfectly overlapped."""
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, count: float) -> "Work":
        """The same call `count` times."""
        return Work(*(count * getattr(self, f.name) for f in fields(self)))

    def seconds(self, device: Device) -> dict[str, float]:
        """Time each resource needs, by name."""
        return {f.name: getattr(self, f.name) / getattr(device, f.name) for f in fields(self)}

    def floor(self, device: Device) -> tuple[float, str]:
        """Seconds at best, and the resource that binds."""
        times = self.seconds(device)
        binding = max(times, key=lambda name: times[name])
        return times[binding], binding


def scan_work(case: ScanCase, direction: str, itemsize: int = 2) -> Work:
    """Work of a scan `forward` or `backward` with activations of `itemsize` bytes."""
    tokens = case.batch * case.windows.num_tokens
    channels = tokens * case.width
    maps = 2 * tokens * case.states
    slots = SCAN_SLOTS[direction] * channels * case.states / 16
    if direction == "forward":  # x, dt, B, C in; y out
        return Work((3 * channels + maps) * itemsize, 7 * channels * case.states, channels * case.states, slots)
    # dy and twice x, dt, B, C in; dx, ddt out; float32 scratch p out and in; dB, dC in float32 a tile of 72 channels
    tiles = -(-case.width // 72)
    moved = (2 * 3 * channels + 2 * maps + 2 * channels) * itemsize + 8 * channels + 4 * maps * tiles
    return Work(moved, 20 * channels * case.states, 2 * channels * case.states, slots)


def conv_work(case: ConvCase, direction: str, itemsize: int = 2) -> Work:
    """Work of a convolution with SiLU."""
    values = case.batch * case.windows.num_tokens * case.width
    if direction == "forward":
        return Work(2 * values * itemsize, 2 * case.taps * values, 2 * values, 25.3 / 32 * values)
    return Work(3 * values * itemsize, 6 * case.taps * values, 2 * values, 75.5 / 32 * values)
