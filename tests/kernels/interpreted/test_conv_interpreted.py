"""The Triton convolution, interpreted, against its definition in float64: outputs and every gradient."""

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels import Windows, tuning
from fmri_scale.kernels.cases import WIDTHS, WINDOW_SIZES, geometry_features
from fmri_scale.kernels.conv import cases, conv_silu, reference

RANDOM = cases.covering_cases(500, seed=1, max_tokens=600, most_taps=4)
PICKED = [
    cases.ConvCase(1, Windows((1, 2, 2, 3), (1, 2, 2, 3)), 100, taps=3, has_prefix=True),
    cases.ConvCase(1, Windows((1, 1, 2, 2), (1, 1, 1, 2), (0, 0, 0, 1)), 12, taps=4, has_prefix=True),
    cases.ConvCase(1, Windows((2, 2, 2, 4), (2, 2, 2, 4)), 144, taps=2),
]


def run(function, case, inputs, **backend):
    x, weight, bias, prefix = inputs
    y = function(x, weight, bias, case.windows, prefix, **backend)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, torch.autograd.grad(y, [v for v in inputs if v is not None], upstream)


def check(case, run_length):
    """Compare a convolution, launched with runs of some length, with the definition."""
    values = cases.make_inputs(case, torch.float32)
    inputs = [None if v is None else v.clone().requires_grad_() for v in values.values()]
    exact = [None if v is None else v.double().requires_grad_() for v in values.values()]
    rule = {"channels": 72, "run": run_length, "elements_per_thread": 4}
    with tuning.override({"conv_forward": rule, "conv_backward": rule}):
        y, grads = run(conv_silu, case, inputs, backend="triton")
    y_ref, grads_ref = run(reference.forward, case, exact)
    assert ((y - y_ref).norm() / y_ref.norm()).item() < 1e-6
    names = [name for name, v in values.items() if v is not None]
    errors = {n: ((g - r).norm() / r.norm()).item() for n, g, r in zip(names, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("case", RANDOM + PICKED, ids=str)
def test_outputs_and_gradients(case):
    check(case, run_length=4)


@pytest.mark.parametrize("run_length", [8, 16, 32])
def test_runs_of_any_length_give_the_same(run_length):
    check(cases.ConvCase(1, Windows((2, 2, 2, 5), (2, 2, 2, 5)), 8, has_prefix=True), run_length)


def test_random_cases_cover_the_geometry():
    found = set().union(*(geometry_features(case.windows) for case in RANDOM))
    assert {f"window {size}" for size in WINDOW_SIZES} <= found
    assert {f"{axis} {how}" for axis in "DHWT" for how in ("shifted", "cut, not shifted")} <= found
    assert {case.batch for case in RANDOM} == {1, 2, 3}
    assert {case.width for case in RANDOM} == set(WIDTHS)
    assert {(case.taps, case.has_prefix) for case in RANDOM} == {(k, p) for k in (2, 3, 4) for p in (True, False)}


def test_five_taps_are_refused():
    case = cases.ConvCase(1, Windows((1, 1, 1, 4), (1, 1, 1, 4)), 8, taps=5)
    x, weight, bias, _ = cases.make_inputs(case, torch.float32).values()
    with pytest.raises(ConfigError, match="5 taps; it convolves up to 4, take torch"):
        conv_silu(x, weight, bias, case.windows, backend="triton")
