"""Windows of listed patches on a CPU: the sequences that a walk over the grid gives, exact gradients, one operator."""

import itertools

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels import Windows, strd
from fmri_scale.kernels.conv import cases as conv_cases
from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.conv import cpu as conv_cpu
from fmri_scale.kernels.conv import reference as conv_reference
from fmri_scale.kernels.conv.op import conv_silu_op
from fmri_scale.kernels.scan import cases, reference, scan
from fmri_scale.kernels.scan import cpu as scan_cpu
from fmri_scale.kernels.scan.op import scan_op
from fmri_scale.kernels.strd.op import strd_scores_op
from fmri_scale.kernels.strd.reference import neighbourhoods
from fmri_scale.kernels.windows import ListedWindows, token_rows, window_table

GEOMETRIES = [
    ((4, 4, 4, 8), (2, 2, 2, 4), (1, 1, 1, 2), 0.3),
    ((4, 2, 6, 6), (2, 2, 3, 3), (0, 1, 2, 0), 0.5),
    ((3, 5, 4, 4), (2, 4, 4, 4), (1, 2, 0, 0), 0.2),
    ((2, 2, 2, 4), (2, 2, 2, 2), (0, 0, 0, 1), 0.0),
    ((4, 4, 2, 4), (2, 2, 2, 4), (1, 0, 0, 0), 1.0),
]
"Grid before padding in space, window, shift, share of the patches that are there (0: one alone)."
SMALL = GEOMETRIES[1]


def active(grid, share, seed=0):
    """Patches that are there."""
    found = torch.rand(grid[:3], generator=torch.Generator().manual_seed(seed)) < share
    found.view(-1)[grid[0] * grid[1]] = True
    return found


def listed(geometry, seed=0):
    """Windows of a geometry over some of its patches."""
    grid, window, shift, share = geometry
    here = active(grid, share, seed)
    padded = [-(-n // w) * w for n, w in zip(grid, window, strict=True)]
    table = window_table(here, padded[:3], window[:3], shift[:3])
    return ListedWindows((int(here.sum()), 1, 1, grid[3]), window, (0, 0, 0, shift[3]), table)


def sequences(geometry, seed=0):
    """Tokens of each window, found by walking the grid cell by cell."""
    grid, window, shift, share = geometry
    here = active(grid, share, seed)
    number = {tuple(at.tolist()): i for i, at in enumerate(here.nonzero())}
    padded = [-(-n // w) * w for n, w in zip(grid, window, strict=True)]
    found = []
    for start in itertools.product(*(range(0, n, w) for n, w in zip(padded, window, strict=True))):
        tokens = []
        for step in itertools.product(*(range(w) for w in window)):
            at = tuple((a + b + s) % n for a, b, s, n in zip(start, step, shift, padded, strict=True))
            if at[:3] in number:
                tokens.append(number[at[:3]] * grid[3] + at[3])
        if tokens:
            found.append(tokens)
    return found


def leaves(values):
    """Inputs that take gradients."""
    return [None if v is None else v.clone().requires_grad_() for v in values]


def gradients(y, inputs):
    """All gradients under a fixed upstream gradient."""
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad(y, [v for v in inputs if v is not None], upstream)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_order_is_that_of_a_walk_over_the_grid(geometry):
    windows, expected = listed(geometry), sequences(geometry)
    assert windows.num_windows == len(expected)
    for reverse in (False, True):
        for row, tokens in zip(windows.order(reverse=reverse), expected, strict=True):
            filled = tokens[::-1] if reverse else tokens
            assert row.tolist() == filled + [-1] * (windows.length - len(tokens))
    assert sorted(itertools.chain(*expected)) == list(range(windows.num_tokens))


def test_windows_without_patches_do_not_exist():
    here = torch.zeros(4, 4, 4, dtype=torch.bool)
    here[0, 0, 0] = here[3, 3, 3] = True
    windows = ListedWindows((2, 1, 1, 4), (2, 2, 2, 4), (0,) * 4, window_table(here, (4, 4, 4), (2, 2, 2), (0, 0, 0)))
    assert windows.num_windows == 2
    assert (windows.order() >= 0).sum(1).tolist() == [4, 4]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_places_are_those_of_whole_windows(geometry):
    windows = listed(geometry)
    grid, window, shift, share = geometry
    token, real = windows.places()
    padded = tuple(-(-n // w) * w for n, w in zip(grid, window, strict=True))
    whole = torch.full(padded, -1)
    here = active(grid, share)
    tokens = torch.arange(windows.num_tokens).view(-1, grid[3])
    whole[: grid[0], : grid[1], : grid[2]][here] = tokens
    expected = whole.flatten()[Windows(padded, window, shift).order()]
    assert torch.equal(torch.where(real, token, -1), expected[(expected >= 0).any(1)])


def test_rows_of_several_clips_know_their_clip():
    windows = listed(GEOMETRIES[0])
    rows, order = token_rows(windows, range(2 * windows.num_windows)), windows.order()
    assert torch.equal(
        rows[:, windows.num_windows].clamp(min=0), torch.where(order < 0, 0, order + windows.num_tokens)[0]
    )
    assert torch.equal(rows < 0, (order < 0).t().repeat(1, 2))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_scan_is_a_plain_scan_of_each_sequence(geometry, reverse):
    windows = listed(geometry)
    case = cases.ScanCase(2, windows, 5, states=3, has_h0=True, reverse=reverse)
    inputs = leaves(cases.make_inputs(case, torch.float64).values())
    *six, h0 = inputs
    y = scan(*six, windows, h0, reverse)
    x, dt, A, B, C, D = six
    expected = torch.zeros_like(y)
    for tokens in sequences(geometry):
        index = torch.tensor(tokens)
        line = Windows((1, 1, 1, len(tokens)), (1, 1, 1, len(tokens)))
        parts = (x[:, index], dt[:, index], A, B[:, index], C[:, index], D)
        expected = expected.index_copy(1, index, reference.forward(*parts, line, h0, reverse))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, inputs), gradients(expected, inputs))
    by_reference = reference.forward(*six, windows, h0, reverse)
    torch.testing.assert_close(by_reference, expected)
    upstream = torch.randn_like(y)
    torch.testing.assert_close(
        reference.backward(upstream, *(v.detach() for v in six), windows, h0.detach(), reverse),
        scan_cpu.backward(upstream, *(v.detach() for v in six), windows, h0.detach(), reverse),
    )


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_is_a_plain_one_of_each_sequence(geometry):
    windows = listed(geometry)
    inputs = leaves(conv_cases.make_inputs(conv_cases.ConvCase(2, windows, 5, has_prefix=True), torch.float64).values())
    x, weight, bias, prefix = inputs
    y = conv_silu(x, weight, bias, windows, prefix)
    expected = torch.zeros_like(y)
    for tokens in sequences(geometry):
        index = torch.tensor(tokens)
        line = Windows((1, 1, 1, len(tokens)), (1, 1, 1, len(tokens)))
        expected = expected.index_copy(1, index, conv_reference.forward(x[:, index], weight, bias, line, prefix))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, inputs), gradients(expected, inputs))
    torch.testing.assert_close(conv_reference.forward(x, weight, bias, windows, prefix), expected)
    upstream, (plain_x, *rest) = torch.randn_like(y), [v.detach() for v in inputs]
    torch.testing.assert_close(
        conv_reference.backward(upstream, plain_x, *rest[:2], windows, rest[2]),
        conv_cpu.backward(upstream, plain_x, *rest[:2], windows, rest[2]),
    )


def test_block_size_changes_nothing(monkeypatch):
    windows = listed(GEOMETRIES[0])
    inputs = leaves(cases.make_inputs(cases.ScanCase(3, windows, 8, states=4), torch.float64).values())[:-1]
    whole = gradients(scan(*inputs, windows), inputs)
    monkeypatch.setattr(scan_cpu, "BLOCK_ELEMENTS", 5 * windows.length * 4 * 8)
    torch.testing.assert_close(gradients(scan(*inputs, windows), inputs), whole)


def test_operators_pass_gradcheck_and_opcheck():
    windows = listed(SMALL)
    geometry = (list(windows.grid), list(windows.window), list(windows.shift))
    inputs = leaves(cases.make_inputs(cases.ScanCase(1, windows, 2, states=2, has_h0=True), torch.float64).values())
    assert torch.autograd.gradcheck(lambda *six: scan(*six, windows), inputs[:-1], fast_mode=True)
    single = leaves(cases.make_inputs(cases.ScanCase(1, windows, 2, states=2, has_h0=True), torch.float32).values())
    torch.library.opcheck(scan_op, (*single, *geometry, True, "auto", windows.table))
    inputs = leaves(conv_cases.make_inputs(conv_cases.ConvCase(1, windows, 2, has_prefix=True), torch.float64).values())
    assert torch.autograd.gradcheck(lambda x, w, b, p: conv_silu(x, w, b, windows, p), inputs, fast_mode=True)
    single = leaves(conv_cases.make_inputs(conv_cases.ConvCase(1, windows, 2), torch.float32).values())
    torch.library.opcheck(conv_silu_op, (*single, *geometry, "auto", windows.table))


def test_scores_are_those_of_the_tokens_that_are_there():
    window, count = (2, 2, 1, 3), 5
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(count, 12, 6, generator=draw, dtype=torch.float64)
    real = (torch.rand(count, 4, 1, generator=draw) < 0.6).expand(-1, -1, 3).flatten(1)
    real[:, :3] = True
    found = strd.scores(h * real[..., None], window, 3, 3, real_WL=real)
    redundant = strd.redundancy(h * real[..., None], window, 3, 3, real_WL=real)
    for w in range(count):
        kept = real[w].nonzero().squeeze(1)
        spatial, temporal = neighbourhoods(window, 3, 3)
        alone = _scores_of(h[w, kept], spatial[kept][:, kept], temporal[kept][:, kept])
        torch.testing.assert_close(found[w, kept], alone)
        cosine = torch.nn.functional.normalize(h[w, kept].float(), dim=-1)
        explained = (cosine @ cosine.t()).clamp(0, 1).square()
        parts = [(explained * near[kept][:, kept]).amax(-1) for near in (spatial, temporal)]
        kinds = sum(near[kept][:, kept].any(1).float() for near in (spatial, temporal))
        torch.testing.assert_close(redundant[w, kept], sum(parts) / kinds.clamp(min=1))
    torch.library.opcheck(strd_scores_op, (h.float(), list(window), 3, 3, "auto", real))


def _scores_of(h_LC, spatial, temporal):
    """The published formula for any tokens, of which the neighbours are known."""
    attention = torch.softmax(h_LC @ h_LC.t() * h_LC.shape[1] ** -0.5, dim=-1)
    near = [attention * where for where in (spatial, temporal)]
    (f_spat, f_temp), (s_spat, s_temp) = [n.amax(-1) for n in near], [n.sum(-1) for n in near]
    n_spat, n_temp = spatial.sum(-1), temporal.sum(-1)
    weight = 0.5 * (f_temp * (n_spat > 0) / (s_spat + 1e-8) + f_spat * (n_temp > 0) / (s_temp + 1e-8))
    return ((weight[:, None] * attention).clamp(0, 1).sum(-1) / (n_spat + n_temp).clamp(min=1)).clamp(0, 1)


def test_what_does_not_fit_is_named():
    windows = listed(SMALL)
    with pytest.raises(ValueError, match="the table of M patches"):
        ListedWindows((windows.grid[0] * 9, 1, 1, 6), windows.window, (0,) * 4, windows.table)
    with pytest.raises(ValueError, match="expected whole windows of 5 frames"):
        ListedWindows((*windows.grid[:3], 5), windows.window, (0,) * 4, windows.table)
    with pytest.raises(ValueError, match="real is"):
        strd.scores(torch.zeros(2, 4, 3), (2, 2, 1, 1), real_WL=torch.ones(2, 3, dtype=torch.bool))
    from fmri_scale.kernels.scan import mamba

    with pytest.raises(ConfigError, match="scans windows of one length"):
        mamba.forward(*[torch.zeros(1, 1, 1)] * 6, windows, None, False)
