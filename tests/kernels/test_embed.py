"""The embedding of codes on a CPU: equal to its definition, exact gradients, one opaque operator."""

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels.clips import Hidden, hidden_tokens, normalise
from fmri_scale.kernels.embed import cases, cpu, embed, reference
from fmri_scale.kernels.embed.op import embed_op

SMALL = cases.ClipCase(2, (4, 2, 6), (2, 2, 3), 3, 4, "drawn", (1, 1, 1, 2), (2, 1, 1, 2))


def leaves(case, dtype):
    """Random parameters in argument order, each with a gradient."""
    return [v.requires_grad_() for v in cases.make_parameters(case, dtype).values()]


def run(function, case, inputs):
    """Tokens and all gradients under a fixed upstream gradient."""
    tokens = function(cases.make_clips(case), *inputs, cases.make_hidden(case), case.slots)
    upstream = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return tokens, torch.autograd.grad(tokens, inputs, upstream.to(tokens.dtype))


@pytest.mark.parametrize("case", cases.random_cases(9, seed=3), ids=str)
def test_embedding_matches_definition(case):
    inputs = leaves(case, torch.float64)
    torch.testing.assert_close(run(embed, case, inputs), run(reference.forward, case, inputs))


def test_embedding_gradcheck():
    clips, hidden = cases.make_clips(SMALL), cases.make_hidden(SMALL)
    inputs = leaves(SMALL, torch.float64)
    assert torch.autograd.gradcheck(lambda *p: embed(clips, *p, hidden, SMALL.slots), inputs)


@pytest.mark.parametrize("case", cases.random_cases(9, seed=5), ids=str)
def test_embedding_of_listed_patches_is_that_of_all_there(case):
    clips, hidden, patches = cases.make_clips(case), cases.make_hidden(case), cases.make_patches(case, 0.4)

    def of_all(*inputs):
        every = reference.forward(clips, *inputs, hidden, case.slots)
        return every.unflatten(1, (-1, case.frames))[:, patches.long()].flatten(1, 2)

    inputs, found = leaves(case, torch.float64), []
    for function in (of_all, lambda *p: embed(clips, *p, hidden, case.slots, patches_K=patches)):
        tokens = function(*inputs)
        upstream = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found.append((tokens, torch.autograd.grad(tokens, inputs, upstream)))
    torch.testing.assert_close(*found)


def test_embedding_of_listed_patches_gradcheck():
    clips, hidden, patches = cases.make_clips(SMALL), cases.make_hidden(SMALL), cases.make_patches(SMALL, 0.5)
    inputs = leaves(SMALL, torch.float64)
    assert torch.autograd.gradcheck(lambda *p: embed(clips, *p, hidden, SMALL.slots, patches_K=patches), inputs)


def test_embedding_of_a_decoded_volume():
    """The values are those that the corpus defines, at the patch's place in the volume."""
    clips = cases.make_clips(SMALL)
    volume = torch.empty(2, 48, 3, dtype=torch.float64)
    for b in range(2):
        x = clips.scale[b, 0].double() + clips.scale[b, 1].double() * clips.codes[b].double()
        volume[b] = clips.outside[b].double()
        volume[b, clips.lookup >= 0] = (x * clips.gain[b].double() + clips.shift[b].double()).T
    cut = volume.view(2, 2, 2, 1, 2, 2, 3, 3).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(2, 12, 12)
    eye, zero = torch.eye(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    embedded = embed(clips, eye, zero, zero[None], torch.zeros(4, 12).double(), torch.zeros(3, 12).double())
    torch.testing.assert_close(embedded, cut)


def test_block_size_changes_no_token(monkeypatch):
    inputs = leaves(SMALL, torch.float64)
    whole = run(embed, SMALL, inputs)
    monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", 2 * 3 * 12 + 5)
    torch.testing.assert_close(whole, run(embed, SMALL, inputs), rtol=1e-12, atol=1e-12)


def test_drawn_units_are_hidden_whole():
    hidden = Hidden(None, torch.tensor([0, 4]), torch.tensor([9, 9]), 3, 5, (2, 2, 1, 3))
    grid = (3, 4, 2, 5)
    tokens = hidden_tokens(hidden, 2, grid, torch.device("cpu")).view(2, *grid)
    assert not torch.equal(tokens[0], tokens[1])
    units = [
        tokens[:, d : d + 2, h : h + 2, w, t : t + 3].flatten(1)
        for d in (0, 2)
        for h in (0, 2)
        for w in (0, 1)
        for t in (0, 3)
    ]
    assert all(torch.equal(unit.all(1), unit.any(1)) for unit in units)
    assert torch.stack([unit.all(1) for unit in units]).sum(0).tolist() == [5, 5]


def test_normalisations_are_those_of_the_corpus():
    offset, step, q = torch.tensor([[1.5]]), torch.tensor([[0.25]]), 8.0
    scale, stats = torch.stack([offset, step], 1), torch.tensor([[[0.5], [2.0]]])
    unit, mean, sd, background = (torch.tensor([v]) for v in (10.0, 20.0, 4.0, -3.0))
    found = {}
    for name in ("run_z", "voxel_z", "none"):
        s, gain, shift, outside = normalise(name, scale, unit, mean, sd, background, stats)
        found[name] = ((s[0, 0, 0] + s[0, 1, 0] * q) * gain + shift).item(), outside.item()
    assert found == {"run_z": (3.75, -3.0), "voxel_z": (1.5, 0.0), "none": (35.0, 0.0)}
    with pytest.raises(ConfigError, match="no voxel statistics"):
        normalise("voxel_z", scale, unit, mean, sd, background)
    with pytest.raises(ConfigError, match="frame_z"):
        normalise("frame_z", scale, unit, mean, sd, background, stats)


def test_embedding_in_bfloat16_keeps_dtypes():
    inputs = leaves(SMALL, torch.bfloat16)
    tokens, grads = run(embed, SMALL, inputs)
    exact, _ = run(embed, SMALL, [v.detach().double().requires_grad_() for v in inputs])
    assert [tokens.dtype, *(g.dtype for g in grads)] == [torch.bfloat16] * 6
    assert ((tokens.double() - exact).norm() / exact.norm()).item() < 4e-3


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("mode", ["drawn", "given", "none"])
def test_embedding_passes_opcheck(mode, listed):
    case = cases.ClipCase(2, (2, 2, 4), (2, 2, 2), 2, 3, mode)
    *tensors, image, patch = cases.make_clips(case)
    *draw, unit = cases.make_hidden(case)
    lists = (list(image), list(patch), list(unit), list(case.slots))
    patches = cases.make_patches(case, 0.6) if listed else None
    inputs = (*leaves(case, torch.float32), *tensors, *draw[:3], patches, *draw[3:], *lists, "auto")
    torch.library.opcheck(embed_op, inputs)


def test_wrong_clips_are_named():
    clips, inputs = cases.make_clips(SMALL), leaves(SMALL, torch.float32)
    with pytest.raises(ValueError, match=r"lookup is \(47,\): expected \(48,\)"):
        embed(clips._replace(lookup=clips.lookup[1:]), *inputs)
    with pytest.raises(ValueError, match=r"codes is torch.uint8: expected torch.int8"):
        embed(clips._replace(codes=clips.codes.to(torch.uint8)), *inputs, slots=SMALL.slots)
    with pytest.raises(ValueError, match=r"mask_tokens is \(4, 4\): expected \(1, 4\)"):
        embed(clips, *inputs)
    with pytest.raises(ValueError, match=r"hidden is \(2, 5\): expected \(2, 12\)"):
        embed(clips, *inputs, Hidden(torch.ones(2, 5, dtype=torch.bool)), SMALL.slots)
    with pytest.raises(ValueError, match="9 of 8 units"):
        embed(clips, *inputs, cases.make_hidden(SMALL)._replace(num_hidden=9), SMALL.slots)
    for patches in (torch.arange(3), torch.empty(0, dtype=torch.int32), torch.arange(5).int()):
        with pytest.raises(ValueError, match=r"patches is torch.* expected torch.int32, one to 4 positions"):
            embed(clips, *inputs, slots=SMALL.slots, patches_K=patches)
