"""The operators inside a block: one graph for torch.compile, the same gradients when recomputed, no state kept."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from fmri_scale.kernels import Windows
from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.scan import prefix_scan, scan

WINDOWS = Windows((4, 4, 2, 4), (2, 2, 2, 4), (1, 1, 0, 0))
WIDTH, INNER, STATES, RANK, PROMPTS = 6, 12, 4, 2, 3


@pytest.fixture
def weights():
    """Parameters of a Mamba block, small."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "inward": (2 * INNER, WIDTH),
        "taps": (INNER, 4),
        "bias": (INNER,),
        "maps": (RANK + 2 * STATES, INNER),
        "steps": (INNER, RANK),
        "decay": (INNER, STATES),
        "skip": (INNER,),
        "outward": (WIDTH, INNER),
        "prompt": (PROMPTS, WIDTH),
    }
    return {name: (0.4 * torch.randn(shape, generator=draw)).requires_grad_() for name, shape in shapes.items()}


def block(u, w):
    """A mixer with prompts, from plain products and this package's operators."""
    select = [RANK, STATES, STATES]
    x, z = F.linear(u, w["inward"]).chunk(2, -1)
    p, _ = F.linear(w["prompt"], w["inward"]).chunk(2, -1)
    decay = -torch.exp(w["decay"])
    dt, B, C = F.linear(p, w["maps"]).split(select, -1)
    _, start = prefix_scan(p, F.softplus(F.linear(dt, w["steps"])), decay, B, C, w["skip"])
    x = conv_silu(x, w["taps"], w["bias"], WINDOWS, p[-3:])
    dt, B, C = F.linear(x, w["maps"]).split(select, -1)
    y = scan(x, F.softplus(F.linear(dt, w["steps"])), decay, B, C, w["skip"], WINDOWS, start)
    return u + F.linear(y * F.silu(z), w["outward"])


def gradients(function, weights):
    """Output and all gradients of a function of (tokens, weights)."""
    u = torch.randn(2, WINDOWS.num_tokens, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = function(u, weights)
    return y, torch.autograd.grad(y.square().sum(), [u, *weights.values()])


def test_a_block_compiles_as_one_graph(weights):
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, weights), gradients(block, weights))


def test_recomputing_a_block_changes_no_bit(weights):
    def again(u, w):
        return checkpoint(block, u, w, use_reentrant=False)

    y, grads = gradients(block, weights)
    y_again, grads_again = gradients(again, weights)
    assert torch.equal(y, y_again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


def test_frozen_weights_get_no_gradient(weights):
    for name in ("taps", "decay", "skip", "maps"):
        weights[name].requires_grad_(False)
    block(torch.zeros(1, WINDOWS.num_tokens, WIDTH), weights).sum().backward()
    assert {name for name, w in weights.items() if w.grad is not None} == set(weights) - {
        "taps",
        "decay",
        "skip",
        "maps",
    }
