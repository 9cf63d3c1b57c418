"""The Triton scan, interpreted, against its definition in float64: outputs and every gradient."""

import pytest
import torch

from fmri_scale.kernels import Windows
from fmri_scale.kernels.scan import cases, reference, scan

LINE = Windows((1, 1, 1, 8), (1, 1, 1, 8))
PICKED = [
    cases.ScanCase(1, Windows((4, 4, 4, 4), (4, 4, 4, 4)), 72),
    cases.ScanCase(2, Windows((4, 2, 4, 4), (2, 2, 2, 4), (1, 0, 1, 2)), 24, has_h0=True),
    cases.ScanCase(1, Windows((2, 4, 2, 8), (2, 4, 2, 4), (0, 2, 0, 2)), 144, reverse=True),
    cases.ScanCase(1, Windows((2, 2, 2, 6), (1, 2, 2, 3), (1, 0, 0, 1)), 12, states=4, has_h0=True, reverse=True),
    cases.ScanCase(1, LINE, 100, states=8),
    cases.ScanCase(3, LINE, 40, states=8, has_h0=True),
]


def run(function, case, inputs, **backend):
    *six, h0 = inputs
    y = function(*six, case.windows, h0, case.reverse, **backend)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, torch.autograd.grad(y, [v for v in inputs if v is not None], upstream)


@pytest.mark.parametrize("case", PICKED + cases.random_cases(8, seed=21, max_tokens=96), ids=str)
def test_outputs_and_gradients(case):
    values = cases.make_inputs(case, torch.float32)
    inputs = [None if v is None else v.clone().requires_grad_() for v in values.values()]
    exact = [None if v is None else v.double().requires_grad_() for v in values.values()]
    y, grads = run(scan, case, inputs, backend="triton")
    y_ref, grads_ref = run(reference.forward, case, exact)
    assert distance(y, y_ref) < 1e-6
    names = [name for name, v in values.items() if v is not None]
    errors = {name: distance(g, r) for name, g, r in zip(names, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


def distance(a, b):
    """Relative L2 distance; NaN anywhere gives NaN, which passes no comparison."""
    return ((a.double() - b).norm() / b.norm()).item()
