"""The Triton norm and MLP, interpreted, against its definition in float64: outputs and every gradient."""

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.mlp import cases, norm_mlp, reference
from fmri_scale.kernels.mlp import triton as kernels

PICKED = [
    cases.MlpCase((2, 9), 36, 144),
    cases.MlpCase((3,), 72, 100, residual=False),
    cases.MlpCase((1,), 128, 40),
    cases.MlpCase((9,), 136, 20),
]


@pytest.mark.parametrize("case", PICKED + cases.random_cases(6, seed=2), ids=str)
def test_outputs_and_gradients(case, monkeypatch):
    monkeypatch.setitem(kernels.WIDEST, torch.float32, 128)
    values = cases.make_inputs(case, torch.float32)
    inputs = [v.clone().requires_grad_() for v in values.values()]
    exact = [v.double().requires_grad_() for v in values.values()]
    y = norm_mlp(*inputs, residual=case.residual, backend="triton")
    y_ref = reference.forward(*exact, 1e-5, case.residual)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    assert distance(y, y_ref) < 1e-6
    grads, grads_ref = torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(y_ref, exact, upstream.double())
    errors = {name: distance(g, r) for name, g, r in zip(values, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


def test_shares_of_the_tokens_are_added(monkeypatch):
    """More tokens than one program of a share holds."""
    monkeypatch.setattr(kernels, "SHARES", 2)
    case = cases.MlpCase((90,), 8, 24)
    inputs = [v.requires_grad_() for v in cases.make_inputs(case, torch.float32).values()]
    found = torch.autograd.grad(norm_mlp(*inputs, backend="triton").square().sum(), inputs)
    expected = torch.autograd.grad(norm_mlp(*inputs, backend="torch").square().sum(), inputs)
    assert all(distance(a, b.double()) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_float64_is_refused():
    values = cases.make_inputs(cases.MlpCase((2,), 4, 8), torch.float64)
    with pytest.raises(ConfigError, match="take torch for float64"):
        norm_mlp(*values.values(), backend="triton")


def distance(a, b):
    """Relative L2 distance; NaN anywhere gives NaN, which passes no comparison."""
    return ((a.double() - b).norm() / b.norm()).item()
