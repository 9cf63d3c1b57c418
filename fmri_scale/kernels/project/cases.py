"""Norms and in-projections that tests and benchmarks share, and their random inputs."""

import random
from dataclasses import dataclass

import torch

from fmri_scale.kernels.cases import STAGES


@dataclass(frozen=True)
class ProjectCase:
    """Shape of one."""

    batch: int
    tokens: int
    width: int
    "Channels in, C."
    inner: int
    "Channels of a half, E."

    def __str__(self) -> str:
        """A test id."""
        return f"B{self.batch}-{self.tokens}-C{self.width}-E{self.inner}"


def random_cases(count: int, seed: int) -> list[ProjectCase]:
    """Draw small ones, of widths that are no powers of two."""
    rng = random.Random(seed)
    widths = (5, 8, 20, 36, 72)
    return [
        ProjectCase(rng.randint(1, 3), rng.randint(1, 20), widths[i % 5], rng.choice((1, 2)) * widths[i % 5])
        for i in range(count)
    ]


def stage_cases(batch: int) -> list[ProjectCase]:
    """Those of the base model."""
    return [ProjectCase(batch, stage.windows.num_tokens, stage.width, 2 * stage.width) for stage in STAGES]


def make_inputs(case: ProjectCase, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs by argument name, on the CPU."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    x = 0.5 + 2 * normal(case.batch, case.tokens, case.width)
    weight = normal(2 * case.inner, case.width) * case.width**-0.5
    made = {"x": x, "gain": 1 + 0.3 * normal(case.width), "shift": 0.3 * normal(case.width), "weight": weight}
    return {name: v.to(dtype) for name, v in made.items()}
