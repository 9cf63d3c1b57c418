"""Selection on a CPU: equal to its definition, exact gradients, nothing kept but itself, one opaque operator."""

import pytest
import torch

from fmri_scale.kernels.select import cases, reference, select
from fmri_scale.kernels.select.op import select_op, select_steps_op

SMALL = cases.SelectCase(2, 3, 6, 2, 4)


def leaves(case, dtype):
    """Random inputs in argument order, each with a gradient."""
    return [v.detach().requires_grad_() for v in cases.make_inputs(case, dtype).values()]


@pytest.mark.parametrize("case", cases.random_cases(6, seed=4), ids=str)
def test_selection_matches_definition(case):
    inputs = leaves(case, torch.float64)
    both, both_ref = select(*inputs), reference.forward(*inputs)
    draw = torch.Generator().manual_seed(1)
    upstream = [torch.randn(v.shape, generator=draw, dtype=torch.float64) for v in both]
    torch.testing.assert_close(both, both_ref)
    found = torch.autograd.grad(both, inputs, upstream)
    torch.testing.assert_close(found, torch.autograd.grad(both_ref, inputs, upstream))


def test_selection_gradcheck():
    assert torch.autograd.gradcheck(select, leaves(SMALL, torch.float64))


def test_step_sizes_alone_are_the_same():
    values = cases.make_inputs(SMALL, torch.float32)
    dt, selection = select(*values.values())
    torch.testing.assert_close(select_steps_op(selection, values["dt_proj"], values["dt_bias"], "auto"), dt)


def test_selection_passes_opcheck():
    torch.library.opcheck(select_op, (*leaves(SMALL, torch.float32), "auto"))


def test_wrong_selection_is_named():
    mixed, x_proj, dt_proj, dt_bias = cases.make_inputs(SMALL, torch.float32).values()
    with pytest.raises(ValueError, match=r"dt_bias is \(5,\): expected \(6,\)"):
        select(mixed, x_proj, dt_proj, dt_bias[1:])
    with pytest.raises(ValueError, match="x_proj gives 9 columns: expected 2 for dt and two of all states"):
        select(mixed, x_proj[1:], dt_proj, dt_bias)
