"""Triton's scan, convolution and scores over windows of listed patches, interpreted, against their definitions."""

import random

import pytest
import torch

from fmri_scale.kernels import Windows, strd, tuning
from fmri_scale.kernels.cases import fit_windows, listed_windows
from fmri_scale.kernels.conv import cases as conv_cases
from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.conv import reference as conv_reference
from fmri_scale.kernels.scan import cases as scan_cases
from fmri_scale.kernels.scan import reference as scan_reference
from fmri_scale.kernels.scan import scan
from fmri_scale.kernels.strd import reference as strd_reference

WHOLE = [
    (Windows((4, 4, 2, 8), (2, 2, 2, 4), (1, 1, 0, 2)), 0.25),
    (Windows((2, 4, 4, 6), (2, 2, 4, 3), (0, 1, 2, 0)), 0.3),
    (fit_windows((3, 4, 3, 5), (2, 4, 2, 4), (True, True, True, True)), 0.15),
    (Windows((4, 2, 2, 2), (2, 2, 2, 1), (0, 0, 0, 1)), 0.0),
    (Windows((2, 2, 2, 4), (2, 2, 2, 4)), 1.0),
]
"Windows and the share of their patches; the fourth has one patch and windows of one token."
LISTED = [listed_windows(windows, share, seed) for seed, (windows, share) in enumerate(WHOLE)]


def differentiate(function, inputs):
    y = function(inputs)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, torch.autograd.grad(y, [v for v in inputs if v is not None], upstream)


def compare(values, kernel, definition):
    """Outputs and gradients of a kernel in float32 and of its definition in float64."""
    single = [None if v is None else v.clone().requires_grad_() for v in values.values()]
    exact = [None if v is None else v.double().requires_grad_() for v in values.values()]
    (y, grads), (y_ref, grads_ref) = differentiate(kernel, single), differentiate(definition, exact)
    assert ((y.double() - y_ref).norm() / y_ref.norm()).item() < 1e-6
    names = [name for name, v in values.items() if v is not None]
    pairs = zip(names, grads, grads_ref, strict=True)
    errors = {name: ((g.double() - r).norm() / r.norm().clamp(min=0.01)).item() for name, g, r in pairs}
    assert max(errors.values()) < 1e-5, errors
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("windows", LISTED, ids=[str(w) for w in WHOLE])
@pytest.mark.parametrize(("reverse", "width", "channels", "unroll"), [(False, 12, 8, 4), (True, 10, 72, 2)])
def test_scan(windows, reverse, width, channels, unroll):
    case = scan_cases.ScanCase(2, windows, width, states=4, has_h0=reverse, reverse=reverse)
    rule = {"channels": channels, "unroll": unroll, "num_warps": 1, "channel_windows_at_least": 0}
    with tuning.override({"scan_forward": [rule], "scan_backward": [rule]}):
        compare(
            scan_cases.make_inputs(case, torch.float32),
            lambda v: scan(*v[:6], windows, v[6], reverse, backend="triton"),
            lambda v: scan_reference.forward(*v[:6], windows, v[6], reverse),
        )


@pytest.mark.parametrize("windows", LISTED, ids=[str(w) for w in WHOLE])
@pytest.mark.parametrize(("taps", "has_prefix", "run_length"), [(4, True, 4), (3, False, 16), (4, True, 1)])
def test_convolution(windows, taps, has_prefix, run_length):
    case = conv_cases.ConvCase(2, windows, 10, taps=taps, has_prefix=has_prefix)
    rule = {"channels": 72, "run": run_length, "elements_per_thread": 4}
    with tuning.override({"conv_forward": rule, "conv_backward": rule}):
        compare(
            conv_cases.make_inputs(case, torch.float32),
            lambda v: conv_silu(*v[:3], windows, v[3], backend="triton"),
            lambda v: conv_reference.forward(*v[:3], windows, v[3]),
        )


@pytest.mark.parametrize("window", [(2, 2, 2, 4), (4, 4, 1, 3)])
def test_scores(window):
    rng, length = random.Random(0), window[0] * window[1] * window[2] * window[3]
    draw = torch.Generator().manual_seed(rng.randint(0, 9))
    h = 2 * torch.randn(3, length, 10, generator=draw)
    real = (torch.rand(3, length // window[3], 1, generator=draw) < 0.5).expand(-1, -1, window[3]).flatten(1)
    real[0, : -window[3]] = False  # the first columns hold no token at all
    real[:, -window[3] :] = True
    h = h * real[..., None]
    expected = strd_reference.scores(h.double(), window, 3, 5, real)
    found = strd.scores(h, window, 3, 5, backend="triton", real_WL=real)
    torch.testing.assert_close(found[real].double(), expected[real], rtol=2e-5, atol=1e-7)
