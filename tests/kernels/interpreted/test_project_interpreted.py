"""The Triton norm and in-projection, interpreted, against its definition in float64: outputs and every gradient."""

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.project import cases, norm_project, reference
from fmri_scale.kernels.project import triton as kernels
from fmri_scale.kernels.project.op import norm_project_backward_op

PICKED = [cases.ProjectCase(2, 9, 36, 72), cases.ProjectCase(1, 3, 72, 144), cases.ProjectCase(1, 5, 130, 24)]


@pytest.mark.parametrize("case", PICKED + cases.random_cases(3, seed=2), ids=str)
def test_outputs_and_gradients(case, monkeypatch):
    monkeypatch.setitem(kernels.WIDEST, torch.float32, 128)
    values = cases.make_inputs(case, torch.float32)
    inputs = [v.detach().requires_grad_() for v in values.values()]
    exact = [v.double().requires_grad_() for v in values.values()]
    both, both_ref = norm_project(*inputs, backend="triton"), reference.forward(*exact, 1e-5)
    draw = torch.Generator().manual_seed(1)
    upstream = [torch.randn(v.shape, generator=draw) for v in both]
    assert max(distance(a, b) for a, b in zip(both, both_ref, strict=True)) < 1e-6
    grads = torch.autograd.grad(both, inputs, upstream)
    grads_ref = torch.autograd.grad(both_ref, exact, [v.double() for v in upstream])
    errors = {name: distance(g, r) for name, g, r in zip(values, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


def test_shares_of_the_tokens_and_what_passes_by_are_added(monkeypatch):
    """More tokens than one program of a share holds."""
    monkeypatch.setattr(kernels, "SHARES", 2)
    case = cases.ProjectCase(2, 40, 8, 24)
    inputs = cases.make_inputs(case, torch.float32).values()
    first, second, past = torch.randn(2, 40, 24), torch.randn(2, 40, 24), torch.randn(2, 40, 8)
    found, expected = (
        norm_project_backward_op(first, second, past, *inputs, 1e-5, backend) for backend in ("triton", "torch")
    )
    assert all(distance(a, b.double()) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_float64_is_refused():
    with pytest.raises(ConfigError, match="take torch for float64"):
        norm_project(*cases.make_inputs(cases.ProjectCase(1, 2, 8, 4), torch.float64).values(), backend="triton")


def distance(a, b):
    """Relative L2 distance; NaN anywhere gives NaN, which passes no comparison."""
    return ((a.double() - b).norm() / b.norm()).item()
