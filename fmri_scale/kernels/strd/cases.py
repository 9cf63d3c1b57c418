"""Windows that tests and benchmarks score: (windows, window, width, l_spat, l_temp)."""

import torch

from fmri_scale.kernels.cases import STAGES
from fmri_scale.kernels.windows import Axes

Case = tuple[int, Axes, int, int, int]

SMALL: tuple[Case, ...] = (
    (2, (2, 2, 2, 4), 36, 5, 5),
    (1, (4, 4, 2, 3), 40, 3, 3),
    (3, (1, 3, 2, 5), 7, 5, 3),
    (2, (2, 2, 1, 1), 16, 1, 1),
    (1, (1, 1, 1, 6), 72, 5, 5),
    (1, (3, 1, 5, 1), 24, 3, 5),
)


def stage_cases(batch: int) -> list[Case]:
    """The windows of the base model's stages."""
    return [(batch * s.windows.num_windows, s.windows.window, s.width, 5, 5) for s in STAGES]


def make_inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random mixer outputs (windows, L, C), on the CPU."""
    windows, window, width, _, _ = case
    draw = torch.Generator().manual_seed(seed)
    length = window[0] * window[1] * window[2] * window[3]
    return torch.randn(windows, length, width, generator=draw, dtype=torch.float64).to(dtype)
