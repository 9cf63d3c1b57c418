"""What binds a kernel: memory, tensor cores, special functions or issue slots; and how fast it could be at best.

A `Work` counts what one call must do; `floor` divides each count by what a device does in a second and takes the
largest. Counts follow from shapes: bytes are each input read once and each output written once, exponentials and
products those of the algorithm. Issue slots are what the compiled code spends (counted by compiling, `launches`); a
caller adds them with `with_slots`. So a floor with slots is the best that this code could reach, and one without is
the best that any code could.
"""

import dataclasses
import math
from dataclasses import dataclass, fields

from fmri_scale.kernels.conv.cases import ConvCase
from fmri_scale.kernels.embed.cases import ClipCase
from fmri_scale.kernels.gate.cases import GateCase
from fmri_scale.kernels.mlp.cases import MlpCase
from fmri_scale.kernels.project.cases import ProjectCase
from fmri_scale.kernels.scan.cases import ScanCase
from fmri_scale.kernels.select.cases import SelectCase
from fmri_scale.kernels.strd.cases import Case as StrdCase

BRAIN_VOXELS = 250_000
"Voxels of the MNI152 brain on the 2 mm grid, dilated by two: what a corpus stores of a frame, to within 10 %."


@dataclass(frozen=True)
class Device:
    """Rates of a GPU."""

    name: str
    arch: str
    bytes: float
    "Device memory, bytes a second."
    flops: float
    "Dense bf16 matrix products, operations a second."
    multiprocessors: int
    clock: float
    "Hertz."

    @property
    def exps(self) -> float:
        """Special functions (exponential, reciprocal) a second: 16 lanes a clock (compute capability 8.0 to 10.0)."""
        return 16 * self.multiprocessors * self.clock

    @property
    def slots(self) -> float:
        """Warp instructions issued a second: 4 schedulers a multiprocessor."""
        return 4 * self.multiprocessors * self.clock


DEVICES = {
    device.name: device
    for device in (
        Device("H200", "sm_90", 4.3e12, 790e12, 132, 1.98e9),  # memory and products as measured on one
        Device("H100", "sm_90", 3.0e12, 790e12, 132, 1.98e9),
        Device("A100", "sm_80", 1.75e12, 270e12, 108, 1.41e9),
        Device("B200", "sm_100", 7.0e12, 1800e12, 148, 1.9e9),
    )
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

    def with_slots(self, slots: float) -> "Work":
        """The same work in code that issues so many warp instructions."""
        return dataclasses.replace(self, slots=slots)

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
    if direction == "forward":  # x, dt, B, C in; y out
        return Work((3 * channels + maps) * itemsize, 7 * channels * case.states, channels * case.states)
    # dy and twice x, dt, B, C in; dx, ddt out; float32 scratch p out and in; dB, dC in float32 a tile of 72 channels
    tiles = -(-case.width // 72)
    moved = (2 * 3 * channels + 2 * maps + 2 * channels) * itemsize + 8 * channels + 4 * maps * tiles
    return Work(moved, 20 * channels * case.states, 2 * channels * case.states)


def conv_work(case: ConvCase, direction: str, itemsize: int = 2) -> Work:
    """Work of a convolution with SiLU."""
    values = case.batch * case.windows.num_tokens * case.width
    if direction == "forward":
        return Work(2 * values * itemsize, 2 * case.taps * values, 2 * values)
    return Work(3 * values * itemsize, 6 * case.taps * values, 2 * values)


def project_work(case: ProjectCase, direction: str, itemsize: int = 2) -> Work:
    """Work of norm and in-projection; backward also reads and adds the gradient that passes by."""
    tokens = case.batch * case.tokens
    products = 2 * tokens * case.width * 2 * case.inner
    if direction == "forward":
        return Work(tokens * (case.width + 2 * case.inner) * itemsize, products)
    return Work(tokens * (3 * case.width + 2 * case.inner) * itemsize, 2 * products)


def select_work(case: SelectCase, direction: str, itemsize: int = 2) -> Work:
    """Work of a selection: a softplus takes an exponential forward; a sigmoid backward, and a reciprocal."""
    tokens, maps = case.batch * case.tokens, case.rank + 2 * case.states
    wide, products = tokens * case.width, 2 * tokens * case.width * (case.rank + maps)
    if direction == "forward":  # mixed in; dt, the selection out
        return Work((2 * wide + tokens * maps) * itemsize, products, wide)
    # mixed, its gradient, that of dt, dt's rank, gradients of B and C in; the gradient of mixed out
    return Work((4 * wide + tokens * maps) * itemsize, 2 * products + 2 * wide * case.rank, 2 * wide)


def gate_work(case: GateCase, direction: str, itemsize: int = 2) -> Work:
    """Work of gate and out-projection; a gate takes an exponential and a reciprocal."""
    tokens = case.batch * case.tokens
    wide, products = tokens * case.inner, 2 * tokens * case.inner * case.width
    if direction == "forward":
        return Work((2 * wide + tokens * case.width) * itemsize, products, 2 * wide)
    return Work((4 * wide + tokens * case.width) * itemsize, 2 * products, 2 * wide)


def mlp_work(case: MlpCase, direction: str, itemsize: int = 2) -> Work:
    """Work of norm, MLP and residual that keep the tokens alone; a GELU takes an exponential and a reciprocal."""
    tokens = math.prod(case.tokens)
    values, products = tokens * case.width, 2 * tokens * case.width * case.hidden
    if direction == "forward":
        return Work(2 * values * itemsize, 2 * products, 2 * tokens * case.hidden)
    return Work(3 * values * itemsize, 5 * products, 2 * tokens * case.hidden)


def mask_work(units: int, clips: int) -> Work:
    """Work of writing a mask: a byte a unit. Keys are hashed in integers, which only issue slots count."""
    return Work(units * clips)


def embed_work(case: ClipCase, itemsize: int = 2, voxels: int = BRAIN_VOXELS, patches: int | None = None) -> Work:
    """Work of the embedding forward (codes of seen tokens in, tokens out) or backward (codes and gradients in).

    `patches` have tokens and hold all voxels; None: all have.
    """
    tokens, values, patches = _clip_tokens(case, patches)
    seen = tokens * (1 - case.ratio)
    codes = case.batch * voxels * (case.frames * (1 - case.ratio) + 4) + 4 * patches * values
    return Work(codes + tokens * case.width * itemsize, 2 * seen * values * case.width)


def loss_work(case: ClipCase, itemsize: int = 2, voxels: int = BRAIN_VOXELS, patches: int | None = None) -> Work:
    """Work of the loss with its gradients: the hidden tokens' features and codes, twice; their gradient out."""
    tokens, values, patches = _clip_tokens(case, patches)
    hidden = tokens * case.ratio
    codes = case.batch * voxels * (case.frames * case.ratio + 4) + 4 * patches * values
    moved = 2 * codes + (2 * hidden + tokens) * case.width * itemsize
    return Work(moved, 4 * 2 * hidden * values * case.width)


def _clip_tokens(case: ClipCase, patches: int | None) -> tuple[int, int, int]:
    """Tokens of a batch, values of a patch, and the patches that have tokens."""
    patches = math.prod(case.grid[:3]) if patches is None else patches
    return case.batch * patches * case.frames, math.prod(case.patch), patches


def strd_work(case: StrdCase, itemsize: int = 2) -> Work:
    """Work of the redundancy scores: attention made twice."""
    windows, window, width, *_ = case
    length = math.prod(window)
    pairs = windows * length * length
    return Work(windows * length * (width + 1) * itemsize, 2 * 2 * pairs * width, 2 * pairs)
