"""Norm and in-projection on a CPU: equal to their definition, exact gradients, nothing kept, one opaque operator."""

import pytest
import torch

from fmri_scale.kernels.project import cases, norm_project, reference
from fmri_scale.kernels.project.op import norm_project_backward_op, norm_project_op

SMALL = cases.ProjectCase(2, 3, 4, 6)


def leaves(case, dtype):
    """Random inputs in argument order, each with a gradient."""
    return [v.detach().requires_grad_() for v in cases.make_inputs(case, dtype).values()]


@pytest.mark.parametrize("case", cases.random_cases(5, seed=4), ids=str)
def test_projection_matches_definition(case):
    inputs = leaves(case, torch.float64)
    both, both_ref = norm_project(*inputs), reference.forward(*inputs, 1e-5)
    draw = torch.Generator().manual_seed(1)
    upstream = [torch.randn(v.shape, generator=draw, dtype=torch.float64) for v in both]
    torch.testing.assert_close(both, both_ref)
    found = torch.autograd.grad(both, inputs, upstream)
    torch.testing.assert_close(found, torch.autograd.grad(both_ref, inputs, upstream))


def test_projection_gradcheck():
    assert torch.autograd.gradcheck(norm_project, leaves(SMALL, torch.float64))


def test_what_passes_by_is_added():
    x, *weights = (v.detach() for v in leaves(SMALL, torch.float64))
    first, second = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    past = torch.randn_like(x)
    with_it = norm_project_backward_op(first, second, past, x, *weights, 1e-5, "auto")
    without = norm_project_backward_op(first, second, None, x, *weights, 1e-5, "auto")
    torch.testing.assert_close(with_it[0], without[0] + past)
    torch.testing.assert_close(with_it[1:], without[1:])


def test_nothing_normalised_is_kept():
    inputs = leaves(SMALL, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_project(*inputs)
    assert {t.data_ptr() for t in kept} == {v.data_ptr() for v in inputs}


def test_projection_passes_opcheck():
    torch.library.opcheck(norm_project_op, (*leaves(SMALL, torch.float32), 1e-5, "auto"))


def test_wrong_projection_is_named():
    x, gain, shift, weight = cases.make_inputs(SMALL, torch.float32).values()
    with pytest.raises(ValueError, match=r"weight is \(11, 4\): expected \(2 E, 4\)"):
        norm_project(x, gain, shift, weight[1:])
    with pytest.raises(ValueError, match=r"shift \(3,\): expected \(4,\) both"):
        norm_project(x, gain, shift[1:], weight)
