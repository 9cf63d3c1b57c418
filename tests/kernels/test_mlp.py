"""Norm, MLP and residual on a CPU: equal to their definition, exact gradients, nothing kept, one opaque operator."""

import pytest
import torch
from torch import nn

from fmri_scale.kernels.mlp import cases, norm_mlp, reference
from fmri_scale.kernels.mlp.op import norm_mlp_op

SMALL = cases.MlpCase((2, 3), 4, 7)


def leaves(case, dtype):
    """Random inputs in argument order, each with a gradient."""
    return [v.requires_grad_() for v in cases.make_inputs(case, dtype).values()]


@pytest.mark.parametrize("case", cases.random_cases(6, seed=4), ids=str)
def test_norm_mlp_matches_definition(case):
    inputs = leaves(case, torch.float64)
    y, y_ref = norm_mlp(*inputs, residual=case.residual), reference.forward(*inputs, 1e-5, case.residual)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(y, y_ref)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(y_ref, inputs, upstream))


def test_norm_mlp_is_the_published_branch():
    norm, up, down = nn.LayerNorm(4), nn.Linear(4, 7), nn.Linear(7, 4)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    weights = (norm.weight, norm.bias, up.weight, up.bias, down.weight, down.bias)
    torch.testing.assert_close(norm_mlp(x, *weights), x + down(nn.GELU()(up(norm(x)))))


@pytest.mark.parametrize("residual", [True, False])
def test_norm_mlp_gradcheck(residual):
    assert torch.autograd.gradcheck(lambda *v: norm_mlp(*v, residual=residual), leaves(SMALL, torch.float64))


def test_no_hidden_layer_is_kept():
    inputs = leaves(SMALL, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_mlp(*inputs)
    assert {t.data_ptr() for t in kept} == {v.data_ptr() for v in inputs}


def test_norm_mlp_in_bfloat16_keeps_dtypes():
    inputs = leaves(cases.MlpCase((64,), 36, 144), torch.bfloat16)
    y = norm_mlp(*inputs)
    grads = torch.autograd.grad(y.float().sum(), inputs)
    assert [y.dtype, *(g.dtype for g in grads)] == [torch.bfloat16] * 8
    exact = norm_mlp(*(v.detach().double() for v in inputs))
    assert ((y.double() - exact).norm() / exact.norm()).item() < 5e-3


def test_norm_mlp_passes_opcheck():
    torch.library.opcheck(norm_mlp_op, (*leaves(SMALL, torch.float32), 1e-5, True, "auto"))


def test_wrong_weights_are_named():
    x, gain, shift, up, up_bias, down, down_bias = cases.make_inputs(SMALL, torch.float32).values()
    with pytest.raises(ValueError, match=r"up_bias is \(6,\): expected \(7,\)"):
        norm_mlp(x, gain, shift, up, up_bias[1:], down, down_bias)
    with pytest.raises(ValueError, match=r"down is \(7, 4\): expected \(4, 7\)"):
        norm_mlp(x, gain, shift, up, up_bias, up, down_bias)
