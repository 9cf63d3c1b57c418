"""The Triton selection, interpreted, against its definition in float64: outputs and every gradient."""

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.select import cases, reference, select
from fmri_scale.kernels.select import triton as kernels

PICKED = [
    cases.SelectCase(2, 9, 72, 3),
    cases.SelectCase(1, 5, 144, 5),
    cases.SelectCase(1, 3, 96, 16, 8),
    cases.SelectCase(1, 3, 40, 20),
]


@pytest.mark.parametrize("case", PICKED + cases.random_cases(3, seed=2), ids=str)
def test_outputs_and_gradients(case, monkeypatch):
    monkeypatch.setitem(kernels.WIDEST, torch.float32, 4096)
    values = cases.make_inputs(case, torch.float32)
    inputs = [v.detach().requires_grad_() for v in values.values()]
    exact = [v.double().requires_grad_() for v in values.values()]
    both, both_ref = select(*inputs, backend="triton"), reference.forward(*exact)
    draw = torch.Generator().manual_seed(1)
    upstream = [torch.randn(v.shape, generator=draw) for v in both]
    assert max(distance(a, b) for a, b in zip(both, both_ref, strict=True)) < 1e-6
    grads = torch.autograd.grad(both, inputs, upstream)
    grads_ref = torch.autograd.grad(both_ref, exact, [v.double() for v in upstream])
    errors = {name: distance(g, r) for name, g, r in zip(values, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


def test_small_and_large_step_sizes_are_exact():
    raw = torch.linspace(-40, 40, 401)[:, None]
    dt = kernels.steps(torch.cat([raw, torch.zeros(401, 2)], 1), torch.ones(1, 1), torch.zeros(1))
    exact = torch.nn.functional.softplus(raw.double(), threshold=1e9)
    assert ((dt.double() - exact) / exact).abs().max() < 2e-6  # of exp(-40) itself, whose argument is rounded


def test_shares_of_the_tokens_are_added(monkeypatch):
    """More tokens than one program of a share holds."""
    monkeypatch.setattr(kernels, "SHARES", 2)
    inputs = [
        v.detach().requires_grad_() for v in cases.make_inputs(cases.SelectCase(2, 20, 16, 2), torch.float32).values()
    ]
    found = torch.autograd.grad(sum(v.square().sum() for v in select(*inputs, backend="triton")), inputs)
    expected = torch.autograd.grad(sum(v.square().sum() for v in select(*inputs, backend="torch")), inputs)
    assert all(distance(a, b.double()) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_float64_is_refused():
    values = cases.make_inputs(cases.SelectCase(1, 2, 8, 2), torch.float64).values()
    with pytest.raises(ConfigError, match="take torch for float64"):
        select(*values, backend="triton")


def distance(a, b):
    """Relative L2 distance; NaN anywhere gives NaN, which passes no comparison."""
    return ((a.double() - b).norm() / b.norm()).item()
