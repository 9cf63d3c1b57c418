"""Gate and out-projection on a CPU: equal to their definition, exact gradients, nothing kept, one opaque operator."""

import pytest
import torch

from fmri_scale.kernels.gate import cases, gate_linear, reference
from fmri_scale.kernels.gate.op import gate_linear_op

SMALL = cases.GateCase(2, 3, 6, 4)


def leaves(case, dtype):
    """Random inputs in argument order, each with a gradient."""
    return [v.detach().requires_grad_() for v in cases.make_inputs(case, dtype).values()]


@pytest.mark.parametrize("case", cases.random_cases(5, seed=4), ids=str)
def test_gate_matches_definition(case):
    inputs = leaves(case, torch.float64)
    out, out_ref = gate_linear(*inputs), reference.forward(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(out, out_ref)
    found = torch.autograd.grad(out, inputs, upstream)
    torch.testing.assert_close(found, torch.autograd.grad(out_ref, inputs, upstream))


def test_gate_gradcheck():
    assert torch.autograd.gradcheck(gate_linear, leaves(SMALL, torch.float64))


def test_no_product_is_kept():
    inputs = leaves(SMALL, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gate_linear(*inputs)
    assert {t.data_ptr() for t in kept} == {v.data_ptr() for v in inputs}


def test_gate_in_bfloat16_keeps_dtypes():
    inputs = leaves(cases.GateCase(1, 64, 72, 36), torch.bfloat16)
    out = gate_linear(*inputs)
    grads = torch.autograd.grad(out.float().sum(), inputs)
    assert [out.dtype, *(g.dtype for g in grads)] == [torch.bfloat16] * 4
    exact = gate_linear(*(v.detach().double() for v in inputs))
    assert ((out.double() - exact).norm() / exact.norm()).item() < 1e-2


def test_what_the_branch_is_added_to_gets_its_gradient():
    y, z, weight = leaves(SMALL, torch.float64)
    past = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(gate_linear(y, z, weight, past), past + gate_linear(y, z, weight))
    assert torch.autograd.gradcheck(gate_linear, (y, z, weight, past))


def test_gate_passes_opcheck():
    inputs = leaves(SMALL, torch.float32)
    torch.library.opcheck(gate_linear_op, (*inputs, None, "auto"))
    torch.library.opcheck(gate_linear_op, (*inputs, torch.randn(2, 3, 4, requires_grad=True), "auto"))


def test_wrong_gate_is_named():
    y, z, weight = cases.make_inputs(SMALL, torch.float32).values()
    with pytest.raises(ValueError, match=r"z is \(2, 2, 6\): expected \(2, 3, 6\)"):
        gate_linear(y, z[:, 1:], weight)
    with pytest.raises(ValueError, match=r"weight is \(6, 4\): expected \(C, 6\)"):
        gate_linear(y, z, weight.t())
    with pytest.raises(ValueError, match=r"past is \(2, 3, 6\): expected \(2, 3, 4\)"):
        gate_linear(y, z, weight, y)
