"""The kernels on a GPU: against the CPU's float64, the same bits a hundred times, inside a CUDA graph.

They need torch, triton, numpy and pytest alone, and skip where there is no CUDA device:

    python -m pytest -m gpu tests/kernels/test_gpu.py

Memory and races, with NVIDIA's compute-sanitizer (of the CUDA toolkit); each takes some minutes:

    for tool in memcheck racecheck synccheck; do
        compute-sanitizer --tool $tool --error-exitcode 1 \\
            python -m pytest -m gpu -k equals_the_cpu tests/kernels/test_gpu.py
    done
"""

import dataclasses

import pytest
import torch

from fmri_scale.kernels.cases import STAGES, listed_windows
from fmri_scale.kernels.conv import cases as conv_cases
from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.embed import cases as clip_cases
from fmri_scale.kernels.embed import embed
from fmri_scale.kernels.gate import cases as gate_cases
from fmri_scale.kernels.gate import gate_linear
from fmri_scale.kernels.loss import cases as loss_cases
from fmri_scale.kernels.loss import masked_loss
from fmri_scale.kernels.mask import unit_mask
from fmri_scale.kernels.mlp import cases as mlp_cases
from fmri_scale.kernels.mlp import norm_mlp
from fmri_scale.kernels.project import cases as project_cases
from fmri_scale.kernels.project import norm_project
from fmri_scale.kernels.scan import cases as scan_cases
from fmri_scale.kernels.scan import scan
from fmri_scale.kernels.select import cases as select_cases
from fmri_scale.kernels.select import select
from fmri_scale.kernels.strd import cases as strd_cases
from fmri_scale.kernels.strd import scores

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
SMALL = {
    "scan": scan_cases.random_cases(6, 1),
    "conv": [case for case in conv_cases.random_cases(8, 1) if case.taps <= 4],
    "project": project_cases.random_cases(6, 1),
    "select": select_cases.random_cases(6, 1),
    "gate": gate_cases.random_cases(6, 1),
    "mlp": mlp_cases.random_cases(6, 1),
    "embed": clip_cases.random_cases(6, 1),
    "loss": clip_cases.random_cases(6, 1),
}
STAGE = {
    "scan": scan_cases.stage_cases(1),
    "conv": conv_cases.stage_cases(1),
    "project": project_cases.stage_cases(1),
    "select": select_cases.stage_cases(1),
    "gate": gate_cases.stage_cases(1),
    "mlp": mlp_cases.stage_cases(1),
    "embed": [dataclasses.replace(clip_cases.base_case(2), image=(48, 48, 48))],
    "loss": [dataclasses.replace(clip_cases.base_case(2), image=(48, 48, 48))],
}
LISTED = [
    (name, dataclasses.replace(case, windows=listed_windows(case.windows, 0.4, seed)))
    for name in ("scan", "conv")
    for seed, case in enumerate(SMALL[name] + STAGE[name])
]
"The same over windows of which two patches in five are there."
PATCHES = [(f"{name}, listed", case) for name in ("embed", "loss") for case in SMALL[name] + STAGE[name]]
"Embedding and loss of listed patches."
EVERY = [(name, case) for name in SMALL for case in SMALL[name] + STAGE[name]] + LISTED + PATCHES
FIRST = [(name, STAGE[name][0]) for name in STAGE] + LISTED[-1:] + PATCHES[-1:]
MAKE = {
    "scan": scan_cases.make_inputs,
    "conv": conv_cases.make_inputs,
    "project": project_cases.make_inputs,
    "select": select_cases.make_inputs,
    "gate": gate_cases.make_inputs,
    "mlp": mlp_cases.make_inputs,
    "embed": clip_cases.make_parameters,
    "loss": loss_cases.make_inputs,
}


def inputs_of(name, case, dtype, device):
    """Leaves by argument, on a device; those of float64 are rounded as `dtype` rounds them."""
    made = MAKE[name.removesuffix(", listed")](case, dtype)
    if name == "loss, listed":
        made["features"] = made["features"][:, : len(clip_cases.make_patches(case, 0.4)) * case.frames]
    return {key: v if v is None else v.to(device).clone().requires_grad_() for key, v in made.items()}


def forward(name, case, inputs):
    """Output of an operation."""
    values = list(inputs.values())
    if name in ("scan", "conv"):
        windows, table = case.windows, case.windows.table
        if table is not None:
            windows = dataclasses.replace(windows, listed=table.to(values[0].device))
        if name == "scan":
            return scan(*values[:6], windows, values[6], case.reverse)
        return conv_silu(*values[:3], windows, values[3])
    if name in ("project", "select"):
        return torch.cat({"project": norm_project, "select": select}[name](*values), -1)
    if name == "gate":
        return gate_linear(*values)
    if name == "mlp":
        return norm_mlp(*values, residual=case.residual)
    clips, hidden = (on(values[0].device, made) for made in (clip_cases.make_clips(case), clip_cases.make_hidden(case)))
    patches = clip_cases.make_patches(case, 0.4).to(values[0].device) if name.endswith("listed") else None
    if name.startswith("embed"):
        return embed(clips, *values, hidden, case.slots, patches_K=patches)
    return masked_loss(clips, *values, hidden, patches_K=patches)


def on(device, record):
    """A tuple of tensors and other things on a device."""
    return type(record)(*(v.to(device) if torch.is_tensor(v) else v for v in record))


def run(name, case, inputs):
    """Output and gradients of all inputs."""
    y = forward(name, case, inputs)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad(y, [v for v in inputs.values() if v is not None], upstream)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("name", "case"), EVERY, ids=str)
def test_kernel_equals_the_cpu(name, case, dtype):
    ours = run(name, case, inputs_of(name, case, dtype, "cuda"))
    rounded = inputs_of(name, case, dtype, "cpu")
    exact = run(name, case, {k: v if v is None else v.detach().double().requires_grad_() for k, v in rounded.items()})
    for a, b in zip(ours, exact, strict=True):
        assert (a.cpu().double() - b).norm() <= TOLERANCE[dtype] * b.norm().clamp(min=1e-3)


@pytest.mark.parametrize(("name", "case"), FIRST, ids=str)
def test_same_bits_a_hundred_times(name, case):
    inputs = inputs_of(name, case, torch.bfloat16, "cuda")
    first = run(name, case, inputs)
    for _ in range(99):
        assert all(torch.equal(a, b) for a, b in zip(first, run(name, case, inputs), strict=True))


@pytest.mark.parametrize("units", [5, 320, 20_480, 81_920])
def test_mask_has_the_bits_of_the_cpu(units):
    epochs, clips = torch.tensor([0, 3]), torch.tensor([7, 2**40 + 1])
    ours = unit_mask(11, epochs.cuda(), clips.cuda(), units, units // 2, backend="triton")
    assert torch.equal(ours.cpu(), unit_mask(11, epochs, clips, units, units // 2, backend="torch"))


@pytest.mark.parametrize("case", strd_cases.stage_cases(1), ids=str)
def test_redundancy_scores_equal_the_cpu(case):
    _, window, _, l_spat, l_temp = case
    h = strd_cases.make_inputs(case, torch.float32)
    found = scores(h.cuda(), window, l_spat, l_temp, backend="triton")
    torch.testing.assert_close(found.cpu().double(), scores(h.double(), window, l_spat, l_temp), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["scan", "conv", "project", "select", "gate", "mlp"])
def test_forward_and_backward_replay_in_a_cuda_graph(name):
    case = STAGE[name][1]
    inputs = inputs_of(name, case, torch.bfloat16, "cuda")
    values = [v for v in inputs.values() if v is not None]
    upstream = torch.randn(STAGES[1].windows.num_tokens, device="cuda").view(1, -1, 1)

    def step():
        y = forward(name, case, inputs)
        return [y, *torch.autograd.grad(y, values, upstream.to(y).expand_as(y))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiled, and autograd's buffers made, before the capture
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        values[0].copy_(torch.randn_like(values[0]))
    graph.replay()
    torch.cuda.synchronize()
    replayed = [v.clone() for v in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))
