"""Selections that tests and benchmarks share, and their random inputs."""

import random
from dataclasses import dataclass

import torch

from fmri_scale.kernels.cases import STAGES, STATES


@dataclass(frozen=True)
class SelectCase:
    """Shape of one."""

    batch: int
    tokens: int
    width: int
    "Channels E."
    rank: int
    states: int = 16

    def __str__(self) -> str:
        """A test id."""
        return f"B{self.batch}-{self.tokens}-E{self.width}-R{self.rank}-S{self.states}"


def random_cases(count: int, seed: int) -> list[SelectCase]:
    """Draw small ones, of widths that are no powers of two and some that come apart into pieces."""
    rng = random.Random(seed)
    widths = (10, 24, 40, 72, 144)
    return [
        SelectCase(rng.randint(1, 3), rng.randint(1, 20), widths[i % 5], rng.randint(1, 9), STATES[i % 3])
        for i in range(count)
    ]


def stage_cases(batch: int) -> list[SelectCase]:
    """Those of the base model."""
    return [SelectCase(batch, s.windows.num_tokens, 2 * s.width, -(-s.width // 16)) for s in STAGES]


def make_inputs(case: SelectCase, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs by argument name, on the CPU; step sizes are mostly small, as in a trained model."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    made = {
        "mixed": normal(case.batch, case.tokens, case.width),
        "x_proj": normal(case.rank + 2 * case.states, case.width) * case.width**-0.5,
        "dt_proj": normal(case.width, case.rank) * case.rank**-0.5,
        "dt_bias": normal(case.width) - 2,
    }
    return {name: v.to(dtype) for name, v in made.items()}
