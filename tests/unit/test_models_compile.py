"""torch.compile sees one graph: no operation, mask or branch of the model breaks it, and nothing changes by it."""

import shutil
from dataclasses import replace

import pytest
import torch

from fmri_scale.kernels.clips import CodedClips
from fmri_scale.kernels.embed.cases import ClipCase, make_clips
from fmri_scale.models import MaskedAutoencoder, clip_keys
from tests.helpers.tiny_models import drawn, tiny

CONFIG = tiny(num_frames=6, depths=[2, 1], window_size=[4, 4, 4, 4])
"Time is padded from 6 to 8 frames, the odd block is shifted."
RICH = replace(CONFIG, prompt_len=2, bidirectional=True, strd="published")
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


@pytest.fixture(scope="module")
def clips() -> CodedClips:
    """Two clips of 24 x 24 x 24 voxels in codes."""
    return make_clips(ClipCase(2, (24, 24, 24), (3, 3, 3), 6, 6))


@pytest.mark.parametrize(("config", "backend"), [(RICH, "aot_eager"), pytest.param(CONFIG, "inductor", marks=COMPILER)])
def test_block_is_one_graph(config, backend):
    """A shifted block of the encoder, forward and backward."""
    block = MaskedAutoencoder(config).backbone.stages[0].blocks[1]
    x = torch.randn(2, 8, 8, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    keys = clip_keys(0, 0, torch.arange(2))
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    assert_equal_training(lambda: block(x, keys).square().mean(), lambda: compiled(x, keys).square().mean(), block)


def test_forward_pass_from_codes_is_one_graph(clips):
    model, mask = MaskedAutoencoder(CONFIG), drawn(CONFIG, 2, strategy="window")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_equal_training(lambda: model(clips, mask, True).loss, lambda: compiled(clips, mask, True).loss, model)


def test_recomputed_blocks_are_one_graph_in_bf16(clips):
    config = replace(CONFIG, checkpoint_blocks=True)
    model, mask = MaskedAutoencoder(config), drawn(config, 2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, exact = compiled(clips, mask, True).loss, model(clips, mask, True).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def assert_equal_training(plain, compiled, module):
    """Loss and every gradient are the same."""
    loss, gradients = differentiated(plain, module)
    found, of_compiled = differentiated(compiled, module)
    assert found == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_compiled[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def differentiated(make_loss, module):
    module.zero_grad()
    loss = make_loss()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
