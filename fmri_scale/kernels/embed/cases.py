"""Clips that tests and benchmarks share: random small ones of odd shape, and the base model's; used by `loss` too."""

import math
import random
from dataclasses import dataclass

import torch

from fmri_scale.kernels.clips import ONE, CodedClips, Hidden, Size, normalise, num_units, voxel_lookup
from fmri_scale.kernels.windows import Axes


@dataclass(frozen=True)
class ClipCase:
    """Shape of a batch of clips, the tokens' width and how tokens are hidden."""

    batch: int
    image: Size
    patch: Size
    frames: int
    width: int
    mode: str = "drawn"
    "drawn, given or none."
    unit: Axes = ONE
    slots: Axes = ONE
    ratio: float = 0.5
    normalisation: str = "run_z"

    @property
    def grid(self) -> Axes:
        """Tokens of a clip."""
        x, y, z = (v // p for v, p in zip(self.image, self.patch, strict=True))
        return x, y, z, self.frames

    def __str__(self) -> str:
        """A test id."""
        shape = "x".join(map(str, (*self.grid, *self.patch)))
        units = f"{self.mode}-{''.join(map(str, self.unit))}-{''.join(map(str, self.slots))}"
        return f"B{self.batch}-{shape}-C{self.width}-{units}-{self.normalisation}"


BRAIN_PATCHES = 1692
"Patches of the base model that hold a voxel of the MNI152 brain, dilated by two."
BASE_UNITS: dict[str, tuple[Axes, Axes]] = {
    "token": (ONE, ONE),
    "window": ((4, 4, 4, 4), (4, 4, 4, 4)),
    "tube": ((1, 1, 1, 20), ONE),
}
"Units and slots of the base model's masks."


def base_case(batch: int, strategy: str = "window", width: int = 36) -> ClipCase:
    """The base model's clips; `width` for its larger relatives."""
    unit, slots = BASE_UNITS[strategy]
    return ClipCase(batch, (96, 96, 96), (6, 6, 6), 20, width, "drawn", unit, slots)


def random_cases(count: int, seed: int) -> list[ClipCase]:
    """Draw small clips of odd shape: patches that are no cubes, cut units and slots, every mode and normalisation."""
    rng = random.Random(seed)
    drawn = []
    for i in range(count):
        patch = (rng.randint(1, 3), rng.randint(1, 3), rng.randint(2, 4))
        image = tuple(rng.randint(1, 4) * p for p in patch)
        unit, slots = (tuple(rng.randint(1, 3) for _ in range(4)) for _ in range(2))
        mode, name = ("drawn", "given", "none")[i % 3], ("run_z", "voxel_z", "none")[i // 3 % 3]
        case = ClipCase(
            rng.randint(1, 3),
            image,  # type: ignore[arg-type]
            patch,
            rng.randint(1, 9),
            rng.choice((5, 8, 20, 36)),
            mode,
            unit,  # type: ignore[arg-type]
            slots,  # type: ignore[arg-type]
            normalisation=name,
        )
        drawn.append(case)
    return drawn


def make_clips(case: ClipCase, seed: int = 0) -> CodedClips:
    """Random codes over the whole int8 range, about two thirds of the voxels in the brain, some of them constant."""
    draw = torch.Generator().manual_seed(seed)
    places = (torch.rand(math.prod(case.image), generator=draw) < 0.65).nonzero().squeeze(1)
    voxels, batch = len(places), case.batch
    codes = torch.randint(-128, 128, (batch, case.frames, voxels), generator=draw, dtype=torch.int8)
    offset = torch.randn(batch, voxels, generator=draw) + 5.0
    step = torch.rand(batch, voxels, generator=draw) * (torch.rand(batch, voxels, generator=draw) > 0.1) / 64
    scale = torch.stack([offset, step], 1).half()
    unit, mean, sd = (torch.rand(batch, generator=draw) + 0.5 for _ in range(3))
    stats = torch.stack([torch.randn(batch, voxels, generator=draw), scale[:, 1] * 60], 1).half()
    background = -torch.rand(batch, generator=draw) - 1.0
    affine = normalise(case.normalisation, scale, unit, mean, sd, background, stats)
    lookup = voxel_lookup(places, case.image)
    return CodedClips(codes, *affine, lookup, case.image, case.patch)


def make_hidden(case: ClipCase, seed: int = 0) -> Hidden:
    """Return the hidden tokens of a case; the clips of mode `given` hide different numbers of them, the first none."""
    draw = torch.Generator().manual_seed(seed)
    if case.mode == "given":
        tokens = torch.rand(case.batch, math.prod(case.grid), generator=draw)
        return Hidden(tokens < torch.arange(case.batch)[:, None] * 0.4)
    if case.mode == "none":
        return Hidden()
    count = round(case.ratio * num_units(case.grid, case.unit))
    return Hidden(None, torch.arange(case.batch), torch.arange(case.batch) + 2**33, 7, count, case.unit)


def make_patches(case: ClipCase, share: float, seed: int = 0) -> torch.Tensor:
    """A list of a random share of the positions, one at least, in random order."""
    positions = math.prod(case.grid[:3])
    order = torch.randperm(positions, generator=torch.Generator().manual_seed(seed))
    return order[: max(1, round(share * positions))].int()


def make_parameters(case: ClipCase, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random parameters of the embedding by argument name, on the CPU."""
    draw = torch.Generator().manual_seed(seed)
    values, width = math.prod(case.patch), case.width
    shapes = {
        "weight": (width, values),
        "bias": (width,),
        "mask_tokens": (math.prod(case.slots), width),
        "position": (math.prod(case.grid[:3]), width),
        "time": (case.frames, width),
    }
    drawn = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    drawn["weight"] *= values**-0.5
    return {name: value.to(dtype) for name, value in drawn.items()}


def meta_inputs(case: ClipCase, voxels: int = 250_000) -> tuple[CodedClips, Hidden]:
    """Clips of `voxels` brain voxels and their drawn mask without contents, to compile kernels for."""
    codes = torch.empty(case.batch, case.frames, voxels, dtype=torch.int8, device="meta")
    scale = torch.empty(case.batch, 2, voxels, dtype=torch.float16, device="meta")
    gain, shift, outside = torch.empty(3, case.batch, device="meta").unbind(0)
    lookup = torch.empty(math.prod(case.image), dtype=torch.int32, device="meta")
    keys = torch.empty(case.batch, dtype=torch.int64, device="meta")
    clips = CodedClips(codes, scale, gain, shift, outside, lookup, case.image, case.patch)
    return clips, make_hidden(case)._replace(epoch=keys, clip_ids=keys)
