"""The Triton loss, interpreted, against its definition in float64: the loss and every gradient."""

import itertools

import pytest
import torch

from fmri_scale.kernels.clips import Hidden
from fmri_scale.kernels.loss import cases, masked_loss, reference

PICKED = [
    cases.ClipCase(2, (12, 6, 6), (6, 6, 6), 5, 36, "drawn", (2, 1, 1, 4)),
    cases.ClipCase(1, (4, 4, 6), (2, 2, 3), 20, 72, "drawn", (1, 1, 1, 20)),
    cases.ClipCase(3, (2, 2, 2), (2, 2, 2), 3, 12, "drawn", ratio=1.0),
    cases.ClipCase(2, (2, 2, 2), (2, 2, 2), 3, 12, "drawn", ratio=0.0),
]
SHARES = [0.0, 0.4, 1.0]
"Of patches listed; two random cases for each."


@pytest.mark.parametrize("brain_only", [True, False])
@pytest.mark.parametrize("case", PICKED + cases.random_cases(6, seed=5), ids=str)
def test_loss_and_gradients(case, brain_only):
    clips, hidden = cases.make_clips(case), cases.make_hidden(case)
    values = cases.make_inputs(case, torch.float32)
    inputs = [v.clone().requires_grad_() for v in values.values()]
    exact = [v.double().requires_grad_() for v in values.values()]
    loss = masked_loss(clips, *inputs, hidden, brain_only, backend="triton")
    loss_ref = reference.loss(clips, *exact, hidden, brain_only)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), loss_ref, rtol=1e-6, atol=0)
    grads, grads_ref = torch.autograd.grad(3.0 * loss, inputs), torch.autograd.grad(3.0 * loss_ref, exact)
    errors = {name: distance(g, r) for name, g, r in zip(values, grads, grads_ref, strict=True)}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(
    ("case", "share"),
    [*itertools.product(PICKED, SHARES), *zip(cases.random_cases(6, seed=7), 2 * SHARES, strict=True)],
    ids=str,
)
def test_listed_patches(case, share):
    clips, hidden, patches = cases.make_clips(case), cases.make_hidden(case), cases.make_patches(case, share)
    values = cases.make_inputs(case, torch.float32)
    values["features"] = values["features"][:, : len(patches) * case.frames]
    inputs = [v.clone().requires_grad_() for v in values.values()]
    exact = [v.double().requires_grad_() for v in values.values()]
    for brain_only in (True, False):
        loss = masked_loss(clips, *inputs, hidden, brain_only, backend="triton", patches_K=patches)
        loss_ref = reference.loss(clips, *exact, hidden, brain_only, patches)
        torch.testing.assert_close(loss.double(), loss_ref, rtol=1e-6, atol=0)
        grads, grads_ref = torch.autograd.grad(loss, inputs), torch.autograd.grad(loss_ref, exact)
        errors = {name: distance(g, r) for name, g, r in zip(values, grads, grads_ref, strict=True)}
        assert max(errors.values()) < 1e-5, errors


def test_tokens_that_are_seen_are_not_read():
    case = cases.ClipCase(1, (4, 4, 4), (2, 2, 2), 6, 8, "given")
    clips, inputs = cases.make_clips(case), cases.make_inputs(case, torch.float32)
    hidden = Hidden(torch.arange(48)[None] % 3 == 1)
    poisoned = inputs["features"].masked_fill(~hidden.given[..., None], float("nan"))
    head = (inputs["weight"], inputs["bias"])
    loss = masked_loss(clips, poisoned, *head, hidden, backend="triton")
    torch.testing.assert_close(loss, masked_loss(clips, inputs["features"], *head, hidden, backend="torch"))


def distance(a, b):
    """Relative L2 distance, absolute where nothing is expected; NaN gives NaN, which passes no comparison."""
    return ((a.double() - b).norm() / b.norm().clamp(min=1e-3)).item()
