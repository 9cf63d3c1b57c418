"""Gates that tests and benchmarks share, and their random inputs."""

import random
from dataclasses import dataclass

import torch

from fmri_scale.kernels.cases import STAGES


@dataclass(frozen=True)
class GateCase:
    """Shape of one."""

    batch: int
    tokens: int
    inner: int
    "Channels in, E."
    width: int
    "Channels out, C."

    def __str__(self) -> str:
        """A test id."""
        return f"B{self.batch}-{self.tokens}-E{self.inner}-C{self.width}"


def random_cases(count: int, seed: int) -> list[GateCase]:
    """Draw small ones, of widths that are no powers of two."""
    rng = random.Random(seed)
    widths = (5, 8, 20, 36, 72)
    return [
        GateCase(rng.randint(1, 3), rng.randint(1, 40), rng.choice((2, 3)) * widths[i % 5], widths[i % 5])
        for i in range(count)
    ]


def stage_cases(batch: int) -> list[GateCase]:
    """Those of the base model."""
    return [GateCase(batch, stage.windows.num_tokens, 2 * stage.width, stage.width) for stage in STAGES]


def make_inputs(case: GateCase, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs by argument name, on the CPU; z is a slice of a wider tensor, as in the model."""
    draw = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.tokens, case.inner)
    y = torch.randn(shape, generator=draw, dtype=torch.float64)
    both_xz = torch.randn(*shape[:2], 2 * case.inner, generator=draw, dtype=torch.float64)
    weight = torch.randn(case.width, case.inner, generator=draw, dtype=torch.float64) * case.inner**-0.5
    return {"y": y.to(dtype), "z": both_xz.to(dtype)[..., case.inner :], "weight": weight.to(dtype)}
