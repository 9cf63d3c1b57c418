"""The Triton scan, interpreted, against its definition in float64: outputs and every gradient."""

import pytest
import torch

from fmri_scale.kernels import Windows, tuning
from fmri_scale.kernels.cases import STATES, WIDTHS, WINDOW_SIZES, geometry_features
from fmri_scale.kernels.scan import cases, reference, scan

RANDOM = cases.covering_cases(400, seed=13, max_tokens=260)
LINE = Windows((1, 1, 1, 8), (1, 1, 1, 8))
PICKED = [
    cases.ScanCase(1, Windows((2, 2, 2, 4), (2, 2, 1, 4), (0, 0, 1, 0)), 144, has_h0=True, reverse=True),
    cases.ScanCase(1, Windows((2, 2, 2, 6), (1, 2, 2, 3), (1, 0, 0, 1)), 12, states=4, has_h0=True, reverse=True),
    cases.ScanCase(1, LINE, 100, states=8),
]
WIDE = {"channels": 72, "unroll": 4, "num_warps": 1, "channel_windows_at_least": 0}


def run(function, case, inputs, **backend):
    *six, h0 = inputs
    y = function(*six, case.windows, h0, case.reverse, **backend)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, torch.autograd.grad(y, [v for v in inputs if v is not None], upstream)


def check(case, rule):
    """Compare a scan launched by a rule of the tables with the definition."""
    values = cases.make_inputs(case, torch.float32)
    inputs = [None if v is None else v.clone().requires_grad_() for v in values.values()]
    exact = [None if v is None else v.double().requires_grad_() for v in values.values()]
    with tuning.override({"scan_forward": [rule], "scan_backward": [rule]}):
        y, grads = run(scan, case, inputs, backend="triton")
    y_ref, grads_ref = run(reference.forward, case, exact)
    assert distance(y, y_ref) < 1e-6
    names = [name for name, v in values.items() if v is not None]
    errors = {name: distance(g, r) for name, g, r in zip(names, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("case", RANDOM + PICKED, ids=str)
def test_outputs_and_gradients(case):
    check(case, WIDE)


@pytest.mark.parametrize(("channels", "unroll", "width"), [(8, 4, 24), (24, 1, 72), (36, 2, 40)])
def test_every_way_to_launch_gives_the_same(channels, unroll, width):
    case = cases.ScanCase(2, Windows((2, 1, 1, 8), (1, 1, 1, 4), (1, 0, 0, 2)), width, states=8, has_h0=True)
    check(case, {**WIDE, "channels": channels, "unroll": unroll})


def test_random_cases_cover_the_geometry():
    found = set().union(*(geometry_features(case.windows) for case in RANDOM))
    assert {f"window {size}" for size in WINDOW_SIZES} <= found
    assert {f"{axis} {how}" for axis in "DHWT" for how in ("shifted", "cut, not shifted")} <= found
    assert {f"{tokens} along {axis}" for axis in "DHW" for tokens in (2, 3, 4, 6, 8)} <= found
    assert {f"{tokens} along T" for tokens in (2, 3, 4, 8)} <= found
    assert {case.batch for case in RANDOM} == {1, 2, 3}
    assert {(case.width, case.states) for case in RANDOM} == {(w, s) for w in WIDTHS for s in STATES}


def distance(a, b):
    """Relative L2 distance; NaN anywhere gives NaN, which passes no comparison."""
    return ((a.double() - b).norm() / b.norm()).item()
