"""The Triton gate and out-projection, interpreted, against its definition in float64: outputs and every gradient."""

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.gate import cases, gate_linear, reference
from fmri_scale.kernels.gate import triton as kernels

PICKED = [cases.GateCase(2, 9, 72, 36), cases.GateCase(1, 3, 144, 72), cases.GateCase(1, 5, 24, 136)]


@pytest.mark.parametrize("case", PICKED + cases.random_cases(5, seed=2), ids=str)
def test_outputs_and_gradients(case, monkeypatch):
    monkeypatch.setitem(kernels.WIDEST, torch.float32, 128)
    values = cases.make_inputs(case, torch.float32)
    inputs = [v.detach().requires_grad_() for v in values.values()]
    exact = [v.double().requires_grad_() for v in values.values()]
    past = torch.randn(case.batch, case.tokens, case.width)
    out, out_ref = gate_linear(*inputs, past, backend="triton"), reference.forward(*exact, past.double())
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    assert distance(out, out_ref) < 1e-6
    grads = torch.autograd.grad(out, inputs, upstream)
    grads_ref = torch.autograd.grad(out_ref, exact, upstream.double())
    errors = {name: distance(g, r) for name, g, r in zip(values, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


def test_shares_of_the_tokens_are_added(monkeypatch):
    """More tokens than one program of a share holds."""
    monkeypatch.setattr(kernels, "SHARES", 2)
    inputs = [
        v.detach().requires_grad_() for v in cases.make_inputs(cases.GateCase(2, 40, 16, 8), torch.float32).values()
    ]
    found = torch.autograd.grad(gate_linear(*inputs, backend="triton").square().sum(), inputs)
    expected = torch.autograd.grad(gate_linear(*inputs, backend="torch").square().sum(), inputs)
    assert all(distance(a, b.double()) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_float64_is_refused():
    with pytest.raises(ConfigError, match="take torch for float64"):
        gate_linear(*cases.make_inputs(cases.GateCase(1, 2, 8, 4), torch.float64).values(), backend="triton")


def distance(a, b):
    """Relative L2 distance; NaN anywhere gives NaN, which passes no comparison."""
    return ((a.double() - b).norm() / b.norm()).item()
