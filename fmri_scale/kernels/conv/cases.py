"""Convolutions that tests and benchmarks share, and their random inputs."""

import random
from dataclasses import dataclass

import torch

from fmri_scale.kernels.cases import STAGES, WIDTHS, covering, geometry_features, random_windows
from fmri_scale.kernels.windows import Windows


@dataclass(frozen=True)
class ConvCase:
    """Shape and options of one convolution."""

    batch: int
    windows: Windows
    width: int
    taps: int = 4
    has_prefix: bool = False

    def __str__(self) -> str:
        """A test id."""
        w = self.windows
        shape = "x".join(map(str, w.grid)) + "-" + "x".join(map(str, w.window)) + "-" + "".join(map(str, w.shift))
        return f"B{self.batch}-{shape}-E{self.width}-K{self.taps}" + ("-prefix" if self.has_prefix else "")


def random_cases(count: int, seed: int, max_tokens: int = 4096) -> list[ConvCase]:
    """Draw small convolutions of odd geometry: batch 1 to 3, all widths, 2 to 5 taps, with and without a prefix."""
    rng = random.Random(seed)
    return [
        ConvCase(
            rng.randint(1, 3),
            random_windows(rng, max_tokens),
            WIDTHS[i % len(WIDTHS)],
            rng.choice((4, 4, 2, 3, 5)),
            rng.random() < 0.5,
        )
        for i in range(count)
    ]


def covering_cases(count: int, seed: int, max_tokens: int, most_taps: int) -> list[ConvCase]:
    """Few of `count` random convolutions, of few windows, with every geometry, batch, width, taps and prefix."""

    def features(case: ConvCase) -> set[str]:
        flags = {f"batch {case.batch}", f"K{case.taps} prefix {case.has_prefix}", f"E{case.width}"}
        return geometry_features(case.windows) | flags

    drawn = [case for case in random_cases(count, seed, max_tokens) if case.taps <= most_taps]
    return covering(drawn, features, lambda c: 2 + c.batch * c.windows.num_windows)


def stage_cases(batch: int) -> list[ConvCase]:
    """The convolutions of the base model."""
    return [ConvCase(batch, stage.windows, 2 * stage.width) for stage in STAGES]


def make_inputs(case: ConvCase, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor | None]:
    """Random inputs by argument name, on the CPU; x is a slice of a wider tensor, as in the model."""
    draw = torch.Generator().manual_seed(seed)
    both_xz = torch.randn(case.batch, case.windows.num_tokens, 2 * case.width, generator=draw, dtype=torch.float64)
    weight = torch.randn(case.width, case.taps, generator=draw, dtype=torch.float64) * case.taps**-0.5
    bias = torch.randn(case.width, generator=draw, dtype=torch.float64)
    prefix = torch.randn(case.taps - 1, case.width, generator=draw, dtype=torch.float64)
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": both_xz.to(dtype)[..., : case.width],
        "weight": weight.to(parameter),
        "bias": bias.to(parameter),
        "prefix": prefix.to(dtype) if case.has_prefix else None,
    }
