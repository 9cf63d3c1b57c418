"""The selective scan on a CPU: equal to its definition, exact gradients, bounded memory, one opaque operator."""

import dataclasses

import pytest
import torch

from fmri_scale.kernels import Windows
from fmri_scale.kernels.scan import cases, cpu, prefix_scan, reference, scan
from fmri_scale.kernels.scan.op import scan_op

SMALL = Windows((2, 2, 2, 4), (2, 2, 1, 2), (1, 0, 0, 1))


def leaves(case, dtype, **options):
    """Random inputs in argument order, each with a gradient."""
    values = cases.make_inputs(case, dtype, **options).values()
    return [None if v is None else v.clone().requires_grad_() for v in values]


def run(function, case, inputs):
    """Output and all gradients under a fixed upstream gradient."""
    *six, h0 = inputs
    y = function(*six, case.windows, h0, case.reverse)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    wanted = [v for v in inputs if v is not None]
    return y, torch.autograd.grad(y, wanted, upstream)


def relative(a, b):
    """Relative L2 distance of a from b."""
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300)).item()


@pytest.mark.parametrize("case", cases.random_cases(8, seed=3, max_tokens=600), ids=str)
def test_matches_definition_in_float64(case):
    inputs = leaves(case, torch.float64)
    y, grads = run(scan, case, inputs)
    y_ref, grads_ref = run(reference.forward, case, inputs)
    assert relative(y, y_ref) < 1e-13
    assert max(relative(g, r) for g, r in zip(grads, grads_ref, strict=True)) < 1e-12


@pytest.mark.parametrize("dt_range", [(1e-3, 1e-1), (1e-2, 1.0), (0.5, 10.0)], ids=["init", "middle", "large"])
def test_float32_is_as_exact_as_autograd(dt_range):
    case = cases.ScanCase(2, Windows((4, 4, 4, 8), (4, 4, 4, 4), (2, 0, 2, 2)), 24, has_h0=True)
    exact = run(reference.forward, case, leaves(case, torch.float64, dt_range=dt_range))
    ours = run(scan, case, leaves(case, torch.float32, dt_range=dt_range))
    assert relative(ours[0], exact[0]) < 1e-6
    assert max(relative(g, r) for g, r in zip(ours[1], exact[1], strict=True)) < 5e-6


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck_with_initial_state(reverse):
    case = cases.ScanCase(1, SMALL, 3, states=2, has_h0=True, reverse=reverse)
    inputs = leaves(case, torch.float64)
    assert torch.autograd.gradcheck(lambda *v: scan(*v[:6], SMALL, v[6], reverse), inputs)


def test_prompt_tokens_before_every_window_are_an_initial_state():
    case = cases.ScanCase(1, SMALL, 4, states=3)
    x, dt, A, Bs, Cs, D, _ = leaves(case, torch.float64)
    prompt = [torch.rand(5, n, dtype=torch.float64, requires_grad=True) for n in (4, 4, 3, 3)]
    _, h = prefix_scan(prompt[0], prompt[1], A, prompt[2], prompt[3], D)
    y = scan(x, dt, A, Bs, Cs, D, SMALL, h)

    line = Windows((1, 1, 1, 5 + SMALL.length), (1, 1, 1, 5 + SMALL.length))
    order = SMALL.order()
    longer = [
        torch.cat([p.expand(len(order), *p.shape), v[0, order]], 1)
        for p, v in zip(prompt, (x, dt, Bs, Cs), strict=True)
    ]
    whole = reference.forward(longer[0], longer[1], A, longer[2], longer[3], D, line)[:, 5:]
    expected = torch.empty_like(y).index_copy(1, order.flatten(), whole.reshape(1, -1, 4))
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    ours = torch.autograd.grad(y, [*prompt[:3], A], upstream)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, [*prompt[:3], A], upstream))


def test_bfloat16_activations_give_bfloat16_outputs_and_float32_parameter_gradients():
    case = cases.ScanCase(2, SMALL, 8, states=4, has_h0=True)
    inputs = leaves(case, torch.bfloat16)
    y, grads = run(scan, case, inputs)
    exact = run(reference.forward, case, [v.detach().double().requires_grad_() for v in inputs])
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [v.dtype for v in inputs]
    assert relative(y, exact[0]) < 5e-3
    assert max(relative(g, r) for g, r in zip(grads, exact[1], strict=True)) < 1e-2


def test_channel_tiles_and_window_blocks_change_nothing(monkeypatch):
    case = cases.ScanCase(3, Windows((4, 4, 2, 8), (2, 2, 2, 4), (1, 1, 0, 2)), 40, has_h0=True)
    inputs = leaves(case, torch.float64)
    whole = run(scan, case, inputs)
    monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", 1 << 12)
    monkeypatch.setattr(cpu, "MIN_TILE", 16)
    cut = run(scan, case, inputs)
    torch.testing.assert_close(whole, cut, rtol=1e-12, atol=1e-12)


def test_result_is_the_same_bits_on_any_number_of_threads():
    case = cases.ScanCase(2, Windows((4, 4, 4, 8), (2, 2, 2, 4), (1, 1, 1, 2)), 24)
    inputs = leaves(case, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(scan, case, inputs))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    for y, grads in results[1:]:
        assert torch.equal(y, results[0][0])
        assert all(torch.equal(g, r) for g, r in zip(grads, results[0][1], strict=True))


def test_no_state_is_saved_for_the_backward_pass():
    case = cases.ScanCase(1, Windows((4, 4, 4, 8), (4, 4, 4, 4)), 24)
    inputs = leaves(case, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        scan(*inputs[:6], case.windows)
    assert {t.data_ptr() for t in kept} == {v.data_ptr() for v in inputs[:6]}


def test_operator_passes_opcheck():
    case = cases.ScanCase(1, SMALL, 4, states=4, has_h0=True)
    geometry = (list(SMALL.grid), list(SMALL.window), list(SMALL.shift))
    for h0 in (True, False):
        *six, start = leaves(dataclasses.replace(case, has_h0=h0), torch.float32)
        torch.library.opcheck(scan_op, (*six, start, *geometry, False, "auto"))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        (0, (1, 31, 4), r"expected \(B, 32, E\)"),
        (1, (1, 32, 5), "dt is"),
        (2, (3, 4), "A is"),
        (3, (1, 32, 5), "B is"),
        (5, (5,), "D is"),
        (6, (4, 5), "h0 is"),
    ],
)
def test_wrong_shape_is_named(name, shape, words):
    inputs = leaves(cases.ScanCase(1, SMALL, 4, states=4, has_h0=True), torch.float32)
    inputs[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=words):
        scan(*inputs[:6], SMALL, inputs[6])
