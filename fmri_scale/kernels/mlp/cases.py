"""Norms and MLPs that tests and benchmarks share, and their random inputs."""

import random
from dataclasses import dataclass

import torch

from fmri_scale.kernels.cases import STAGES


@dataclass(frozen=True)
class MlpCase:
    """Shape and options of one."""

    tokens: tuple[int, ...]
    width: int
    hidden: int
    residual: bool = True

    def __str__(self) -> str:
        """A test id."""
        return f"{'x'.join(map(str, self.tokens))}-C{self.width}-H{self.hidden}" + ("-res" if self.residual else "")


def random_cases(count: int, seed: int) -> list[MlpCase]:
    """Draw small ones: widths and hidden widths that are no powers of two, few tokens, with and without residual."""
    rng = random.Random(seed)
    drawn = []
    for i in range(count):
        width = rng.choice((5, 8, 16, 20, 36, 72))
        tokens = tuple(rng.randint(1, 7) for _ in range(rng.randint(1, 3)))
        drawn.append(MlpCase(tokens, width, rng.choice((2 * width, 4 * width, 3 * width + 1)), i % 2 == 0))
    return drawn


def stage_cases(batch: int) -> list[MlpCase]:
    """Those of the base model."""
    return [MlpCase((batch, stage.windows.num_tokens), stage.width, 4 * stage.width) for stage in STAGES]


def make_inputs(case: MlpCase, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs by argument name, on the CPU; tokens away from zero mean and unit variance."""
    draw = torch.Generator().manual_seed(seed)
    C, H = case.width, case.hidden
    shapes = {"x": (*case.tokens, C), "gain": (C,), "shift": (C,), "up": (H, C), "up_bias": (H,)}
    shapes |= {"down": (C, H), "down_bias": (C,)}
    drawn = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    drawn["x"] = 0.5 + 2.0 * drawn["x"]
    drawn["gain"] = 1.0 + 0.2 * drawn["gain"]
    drawn["up"] *= C**-0.5
    drawn["down"] *= H**-0.5
    return {name: value.to(dtype) for name, value in drawn.items()}
