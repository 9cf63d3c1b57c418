"""Losses that tests and benchmarks share; the clips are those of `embed.cases`."""

import torch

from fmri_scale.kernels.embed.cases import (
    ClipCase,
    base_case,
    make_clips,
    make_hidden,
    make_patches,
    meta_inputs,
    random_cases,
)

__all__ = [
    "ClipCase",
    "base_case",
    "make_clips",
    "make_hidden",
    "make_inputs",
    "make_patches",
    "meta_inputs",
    "random_cases",
]


def make_inputs(case: ClipCase, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random features and head by argument name, on the CPU."""
    draw = torch.Generator().manual_seed(seed)
    d, h, w, t = case.grid
    values = case.patch[0] * case.patch[1] * case.patch[2]
    shapes = {"features": (case.batch, d * h * w * t, case.width), "weight": (values, case.width), "bias": (values,)}
    drawn = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    drawn["weight"] *= case.width**-0.5
    return {name: value.to(dtype) for name, value in drawn.items()}
