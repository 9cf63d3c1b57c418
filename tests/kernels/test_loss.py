"""The masked loss from codes on a CPU: equal to its definition and to the model's, exact gradients, one operator."""

import pytest
import torch

from fmri_scale.kernels.clips import Hidden, hidden_tokens, patch_places, patch_values
from fmri_scale.kernels.loss import cases, cpu, masked_loss, reference
from fmri_scale.kernels.loss.op import masked_loss_op
from fmri_scale.models import loss as model_loss

SMALL = cases.ClipCase(2, (4, 2, 6), (2, 2, 3), 3, 4, "drawn", (1, 1, 1, 2))


def leaves(case, dtype):
    """Random features and head in argument order, each with a gradient."""
    return [v.requires_grad_() for v in cases.make_inputs(case, dtype).values()]


def run(function, case, inputs, brain_only):
    """Loss and all gradients."""
    loss = function(cases.make_clips(case), *inputs, cases.make_hidden(case), brain_only)
    return loss, torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("brain_only", [True, False])
@pytest.mark.parametrize("case", cases.random_cases(6, seed=5), ids=str)
def test_loss_matches_definition(case, brain_only):
    inputs = leaves(case, torch.float64)
    torch.testing.assert_close(
        run(masked_loss, case, inputs, brain_only), run(reference.loss, case, inputs, brain_only)
    )


@pytest.mark.parametrize("brain_only", [True, False])
@pytest.mark.parametrize("mode", ["drawn", "given"])
def test_loss_is_the_one_that_models_are_trained_with(mode, brain_only):
    case = cases.ClipCase(3, (4, 4, 6), (2, 2, 3), 5, 6, mode)
    clips, hidden = cases.make_clips(case), cases.make_hidden(case)
    features, weight, bias = leaves(case, torch.float64)
    places = patch_places(clips)
    patches = (
        torch.stack([patch_values(clips, b, places, torch.float64) for b in range(3)]).transpose(1, 2).flatten(1, 2)
    )
    tokens = hidden_tokens(hidden, 3, clips.grid, features.device)
    brain = (places >= 0).float() if brain_only else None
    model = model_loss.masked_loss(lambda f: f @ weight.T + bias, features, patches, tokens, brain)
    ours = masked_loss(clips, features, weight, bias, hidden, brain_only)
    torch.testing.assert_close(ours, model)
    inputs = (features, weight, bias)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(model, inputs))


@pytest.mark.parametrize("brain_only", [True, False])
@pytest.mark.parametrize("case", cases.random_cases(6, seed=8), ids=str)
def test_loss_of_listed_patches_is_that_where_nothing_else_is_hidden(case, brain_only):
    clips, hidden, patches = cases.make_clips(case), cases.make_hidden(case), cases.make_patches(case, 0.4)
    tokens = hidden_tokens(hidden, case.batch, clips.grid, torch.device("cpu"))
    there = torch.isin(torch.arange(tokens.shape[1]) // case.frames, patches)
    features, weight, bias = leaves(case, torch.float64)
    listed = features.unflatten(1, (-1, case.frames))[:, patches.long()].flatten(1, 2)
    found = [
        masked_loss(clips, features, weight, bias, Hidden(tokens & there), brain_only),
        masked_loss(clips, listed, weight, bias, hidden, brain_only, patches_K=patches),
        reference.loss(clips, listed, weight, bias, hidden, brain_only, patches),
    ]
    grads = [torch.autograd.grad(loss, (features, weight, bias), retain_graph=True) for loss in found]
    for loss, grad in zip(found[1:], grads[1:], strict=True):
        torch.testing.assert_close((loss, grad), (found[0], grads[0]))


def test_loss_gradcheck():
    clips, hidden = cases.make_clips(SMALL), cases.make_hidden(SMALL)
    assert torch.autograd.gradcheck(lambda *p: masked_loss(clips, *p, hidden), leaves(SMALL, torch.float64))


def test_block_size_changes_no_loss(monkeypatch):
    inputs = leaves(SMALL, torch.float64)
    whole = run(masked_loss, SMALL, inputs, True)
    monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", 2 * 3 * 12 + 5)
    torch.testing.assert_close(whole, run(masked_loss, SMALL, inputs, True), rtol=1e-12, atol=1e-12)


def test_nothing_hidden_is_no_loss_and_no_gradient():
    inputs = leaves(SMALL, torch.float32)
    loss = masked_loss(cases.make_clips(SMALL), *inputs, Hidden())
    assert loss.item() == 0.0
    assert all(not g.any() for g in torch.autograd.grad(loss, inputs))


def test_loss_without_gradients():
    clips, hidden, inputs = cases.make_clips(SMALL), cases.make_hidden(SMALL), leaves(SMALL, torch.float32)
    with torch.no_grad():
        quiet = masked_loss(clips, *inputs, hidden)
    torch.testing.assert_close(quiet, masked_loss(clips, *inputs, hidden).detach())
    assert not quiet.requires_grad


def test_loss_in_bfloat16_keeps_dtypes():
    inputs = leaves(SMALL, torch.bfloat16)
    loss, grads = run(masked_loss, SMALL, inputs, True)
    exact, _ = run(masked_loss, SMALL, [v.detach().double().requires_grad_() for v in inputs], True)
    assert loss.dtype == torch.float32
    assert [g.dtype for g in grads] == [torch.bfloat16] * 3
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


def test_second_derivative_is_refused():
    inputs = leaves(SMALL, torch.float64)
    loss = masked_loss(cases.make_clips(SMALL), *inputs, cases.make_hidden(SMALL))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss.square(), inputs, create_graph=True)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("mode", ["drawn", "given"])
def test_loss_passes_opcheck(mode, listed):
    case = cases.ClipCase(2, (2, 2, 4), (2, 2, 2), 2, 3, mode)
    *tensors, image, patch = cases.make_clips(case)
    *draw, unit = cases.make_hidden(case)
    patches = cases.make_patches(case, 0.6) if listed else None
    draw, geometry = [*draw[:3], patches, *draw[3:]], (list(image), list(patch), list(unit))
    for inputs, wanted in (
        (leaves(case, torch.float32), True),
        (cases.make_inputs(case, torch.float32).values(), False),
    ):
        features, *head = inputs
        inputs = (
            features if patches is None else features[:, : 2 * len(patches)].detach().requires_grad_(wanted),
            *head,
        )
        torch.library.opcheck(masked_loss_op, (*inputs, *tensors, *draw, *geometry, True, wanted, "auto"))


def test_wrong_features_are_named():
    clips, hidden = cases.make_clips(SMALL), cases.make_hidden(SMALL)
    features, weight, bias = leaves(SMALL, torch.float32)
    with pytest.raises(ValueError, match=r"features is \(2, 11, 4\): expected \(2, 12, 4\)"):
        masked_loss(clips, features[:, 1:], weight, bias, hidden)
    with pytest.raises(ValueError, match=r"weight is torch.bfloat16: expected torch.float32"):
        masked_loss(clips, features, weight.bfloat16(), bias, hidden)
