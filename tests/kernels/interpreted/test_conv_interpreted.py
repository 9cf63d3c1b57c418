"""The Triton convolution, interpreted, against its definition in float64: outputs and every gradient."""

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels import Windows
from fmri_scale.kernels.conv import cases, conv_silu, reference

PICKED = [
    cases.ConvCase(1, Windows((4, 4, 4, 8), (4, 4, 4, 4), (0, 0, 0, 2)), 72, has_prefix=True),
    cases.ConvCase(2, Windows((1, 2, 2, 6), (1, 2, 2, 3), (0, 0, 0, 1)), 100, taps=3, has_prefix=True),
    cases.ConvCase(1, Windows((2, 2, 2, 2), (1, 1, 1, 2), (0, 0, 0, 1)), 12, taps=4, has_prefix=True),
    cases.ConvCase(1, Windows((2, 2, 2, 4), (2, 2, 2, 4)), 288, taps=2),
]


def run(function, case, inputs, **backend):
    x, weight, bias, prefix = inputs
    y = function(x, weight, bias, case.windows, prefix, **backend)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, torch.autograd.grad(y, [v for v in inputs if v is not None], upstream)


@pytest.mark.parametrize("case", PICKED + [c for c in cases.random_cases(9, 8, max_tokens=160) if c.taps <= 4], ids=str)
def test_outputs_and_gradients(case):
    values = cases.make_inputs(case, torch.float32)
    inputs = [None if v is None else v.clone().requires_grad_() for v in values.values()]
    exact = [None if v is None else v.double().requires_grad_() for v in values.values()]
    y, grads = run(conv_silu, case, inputs, backend="triton")
    y_ref, grads_ref = run(reference.forward, case, exact)
    assert ((y - y_ref).norm() / y_ref.norm()).item() < 1e-6
    names = [name for name, v in values.items() if v is not None]
    errors = {n: ((g - r).norm() / r.norm()).item() for n, g, r in zip(names, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors
    assert all(torch.isfinite(g).all() for g in grads)


def test_five_taps_are_refused():
    case = cases.ConvCase(1, Windows((1, 1, 1, 4), (1, 1, 1, 4)), 8, taps=5)
    x, weight, bias, _ = cases.make_inputs(case, torch.float32).values()
    with pytest.raises(ConfigError, match="5 taps; it convolves up to 4, take torch"):
        conv_silu(x, weight, bias, case.windows, backend="triton")
