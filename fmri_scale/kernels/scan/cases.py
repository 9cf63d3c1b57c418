"""Scans that tests and benchmarks share, and their random inputs."""

import math
import random
from dataclasses import dataclass

import torch

from fmri_scale.kernels.cases import STAGES, STATES, WIDTHS, covering, geometry_features, random_windows
from fmri_scale.kernels.windows import Windows


@dataclass(frozen=True)
class ScanCase:
    """Shape and options of one scan."""

    batch: int
    windows: Windows
    width: int
    states: int = 16
    has_h0: bool = False
    reverse: bool = False

    def __str__(self) -> str:
        """A test id."""
        w = self.windows
        shape = "x".join(map(str, w.grid)) + "-" + "x".join(map(str, w.window)) + "-" + "".join(map(str, w.shift))
        flags = ("-h0" if self.has_h0 else "") + ("-rev" if self.reverse else "")
        return f"B{self.batch}-{shape}-E{self.width}-S{self.states}{flags}"


def random_cases(count: int, seed: int, max_tokens: int = 4096) -> list[ScanCase]:
    """Draw small scans of odd geometry: batch 1 to 3, all widths, states, directions, with and without h0."""
    rng = random.Random(seed)
    return [
        ScanCase(
            rng.randint(1, 3),
            random_windows(rng, max_tokens),
            WIDTHS[i % len(WIDTHS)],
            STATES[i % len(STATES)],
            rng.random() < 0.5,
            rng.random() < 0.5,
        )
        for i in range(count)
    ]


def covering_cases(count: int, seed: int, max_tokens: int) -> list[ScanCase]:
    """Few of `count` random scans, cheap to walk, with every geometry, batch, width, state size, direction and h0."""

    def features(case: ScanCase) -> set[str]:
        flags = {f"batch {case.batch}", f"E{case.width} h0 {case.has_h0}", f"S{case.states} reverse {case.reverse}"}
        return geometry_features(case.windows) | flags | {f"S{case.states} E{case.width}"}

    return covering(random_cases(count, seed, max_tokens), features, lambda c: 40 + c.batch * c.windows.num_tokens)


def stage_cases(batch: int) -> list[ScanCase]:
    """The scans of the base model."""
    return [ScanCase(batch, stage.windows, 2 * stage.width) for stage in STAGES]


def make_inputs(
    case: ScanCase, dtype: torch.dtype, seed: int = 0, dt_range: tuple[float, float] = (1e-3, 1e-1)
) -> dict[str, torch.Tensor | None]:
    """Random inputs by argument name, on the CPU; x, B and C are slices of wider tensors, as in the model.

    Step sizes are log-uniform over `dt_range` (the published initialisation's by default), decay rates those of the
    initialisation, -1 to -S, times a log-normal factor.
    """
    draw = torch.Generator().manual_seed(seed)
    batch, tokens, width, states = case.batch, case.windows.num_tokens, case.width, case.states
    low, high = (math.log(v) for v in dt_range)
    both_xz = torch.randn(batch, tokens, 2 * width, generator=draw, dtype=torch.float64)
    both_BC = torch.randn(batch, tokens, 2 * states, generator=draw, dtype=torch.float64)
    step = torch.rand(batch, tokens, width, generator=draw, dtype=torch.float64)
    spread = torch.randn(width, states, generator=draw, dtype=torch.float64)
    skip = torch.randn(width, generator=draw, dtype=torch.float64)
    start = torch.randn(width, states, generator=draw, dtype=torch.float64)
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": both_xz.to(dtype)[..., :width],
        "dt": torch.exp(low + (high - low) * step).to(dtype),
        "A": (-torch.arange(1.0, states + 1) * torch.exp(0.2 * spread)).to(parameter),
        "B": both_BC.to(dtype)[..., :states],
        "C": both_BC.to(dtype)[..., states:],
        "D": skip.to(parameter),
        "h0": start.to(parameter) if case.has_h0 else None,
    }
