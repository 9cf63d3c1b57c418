"""The Triton embedding, interpreted, against its definition in float64: tokens and every gradient."""

import itertools

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.clips import Hidden
from fmri_scale.kernels.embed import cases, embed, reference

PICKED = [
    cases.ClipCase(2, (12, 6, 6), (6, 6, 6), 10, 36, "drawn", (2, 1, 1, 4), (2, 1, 1, 4)),
    cases.ClipCase(1, (4, 4, 6), (2, 2, 3), 20, 72, "drawn", (1, 1, 1, 20)),
    cases.ClipCase(3, (2, 2, 2), (2, 2, 2), 3, 12, "drawn", ratio=1.0),
]
SHARES = [0.0, 0.4, 1.0]
"Of patches listed; three random cases for each."


def run(function, clips, hidden, slots, inputs, **backend):
    tokens = function(clips, *inputs, hidden, slots, **backend)
    upstream = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return tokens, torch.autograd.grad(tokens, inputs, upstream.to(tokens.dtype))


@pytest.mark.parametrize("case", PICKED + cases.random_cases(9, seed=3), ids=str)
def test_tokens_and_gradients(case):
    clips, hidden = cases.make_clips(case), cases.make_hidden(case)
    values = cases.make_parameters(case, torch.float32)
    inputs = [v.clone().requires_grad_() for v in values.values()]
    exact = [v.double().requires_grad_() for v in values.values()]
    tokens, grads = run(embed, clips, hidden, case.slots, inputs, backend="triton")
    tokens_ref, grads_ref = run(reference.forward, clips, hidden, case.slots, exact)
    assert distance(tokens, tokens_ref) < 1e-6
    errors = {name: distance(g, r) for name, g, r in zip(values, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(
    ("case", "share"),
    [*itertools.product(PICKED, SHARES), *zip(cases.random_cases(9, seed=4), 3 * SHARES, strict=True)],
    ids=str,
)
def test_listed_patches(case, share):
    clips, hidden, patches = cases.make_clips(case), cases.make_hidden(case), cases.make_patches(case, share)
    values = cases.make_parameters(case, torch.float32)
    inputs = [v.clone().requires_grad_() for v in values.values()]
    exact = [v.double().requires_grad_() for v in values.values()]
    tokens, grads = run(embed, clips, hidden, case.slots, inputs, backend="triton", patches_K=patches)
    tokens_ref, grads_ref = run(reference.forward, clips, hidden, case.slots, exact, patches_K=patches)
    assert tokens.shape == tokens_ref.shape == (case.batch, len(patches) * case.frames, case.width)
    assert distance(tokens, tokens_ref) < 1e-6
    errors = {name: distance(g, r) for name, g, r in zip(values, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


def test_hidden_voxels_are_not_read():
    case = cases.ClipCase(1, (4, 4, 4), (2, 2, 2), 6, 8, "given")
    clips, parameters = cases.make_clips(case), cases.make_parameters(case, torch.float32).values()
    everything = Hidden(torch.ones(1, 48, dtype=torch.bool))
    poisoned = clips._replace(scale=torch.full_like(clips.scale, float("nan")))
    tokens = embed(poisoned, *parameters, everything, backend="triton")
    torch.testing.assert_close(tokens, embed(clips, *parameters, everything, backend="torch"))


def test_float64_is_refused():
    case = cases.ClipCase(1, (2, 2, 2), (2, 2, 2), 2, 8, "none")
    with pytest.raises(ConfigError, match="take torch for float64"):
        embed(cases.make_clips(case), *cases.make_parameters(case, torch.float64).values(), backend="triton")


def distance(a, b):
    """Relative L2 distance, absolute where nothing is expected; NaN gives NaN, which passes no comparison."""
    return ((a.double() - b).norm() / b.norm().clamp(min=1e-3)).item()
