"""The windowed convolution on a CPU: equal to its definition, exact gradients, one opaque operator."""

import pytest
import torch

from fmri_scale.kernels import Windows
from fmri_scale.kernels.conv import cases, conv_silu, cpu, reference
from fmri_scale.kernels.conv.op import conv_silu_op

SMALL = Windows((2, 2, 2, 4), (2, 2, 1, 2), (1, 0, 0, 1))


def leaves(case, dtype):
    """Random inputs in argument order, each with a gradient."""
    values = cases.make_inputs(case, dtype).values()
    return [None if v is None else v.clone().requires_grad_() for v in values]


def run(function, case, inputs):
    """Output and all gradients under a fixed upstream gradient."""
    x, weight, bias, prefix = inputs
    y = function(x, weight, bias, case.windows, prefix)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, torch.autograd.grad(y, [v for v in inputs if v is not None], upstream)


@pytest.mark.parametrize("case", cases.random_cases(8, seed=5, max_tokens=1000), ids=str)
def test_matches_definition(case):
    inputs = leaves(case, torch.float64)
    torch.testing.assert_close(run(conv_silu, case, inputs), run(reference.forward, case, inputs))


def test_gradcheck_with_prefix():
    inputs = leaves(cases.ConvCase(2, SMALL, 3, has_prefix=True), torch.float64)
    assert torch.autograd.gradcheck(lambda x, w, b, p: conv_silu(x, w, b, SMALL, p), inputs)


def test_window_shorter_than_the_taps():
    case = cases.ConvCase(1, Windows((2, 2, 2, 2), (1, 1, 1, 2), (0, 0, 0, 1)), 5, taps=4, has_prefix=True)
    inputs = leaves(case, torch.float64)
    torch.testing.assert_close(run(conv_silu, case, inputs), run(reference.forward, case, inputs))


def test_block_size_changes_nothing(monkeypatch):
    case = cases.ConvCase(3, Windows((4, 4, 2, 8), (2, 2, 2, 4), (1, 1, 0, 2)), 24)
    inputs = leaves(case, torch.float64)
    whole = run(conv_silu, case, inputs)
    monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", 5 * 32 * 24)
    torch.testing.assert_close(whole, run(conv_silu, case, inputs), rtol=1e-12, atol=1e-12)


def test_bfloat16_keeps_parameter_gradients_in_float32():
    inputs = leaves(cases.ConvCase(1, SMALL, 8, has_prefix=True), torch.bfloat16)
    y, grads = run(conv_silu, cases.ConvCase(1, SMALL, 8), inputs)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [v.dtype for v in inputs]


def test_operator_passes_opcheck():
    for has_prefix in (True, False):
        inputs = leaves(cases.ConvCase(1, SMALL, 4, has_prefix=has_prefix), torch.float32)
        geometry = (list(SMALL.grid), list(SMALL.window), list(SMALL.shift))
        torch.library.opcheck(conv_silu_op, (*inputs, *geometry, "auto"))


def test_wrong_shape_is_named():
    x, weight, bias, prefix = leaves(cases.ConvCase(1, SMALL, 4, has_prefix=True), torch.float32)
    with pytest.raises(ValueError, match=r"expected \(B, 32, E\)"):
        conv_silu(x[:, 1:], weight, bias, SMALL)
    with pytest.raises(ValueError, match="weight"):
        conv_silu(x, weight[1:], bias, SMALL)
    with pytest.raises(ValueError, match="prefix is"):
        conv_silu(x, weight, bias, SMALL, prefix[1:])
