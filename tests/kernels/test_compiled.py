"""Every kernel compiles for every architecture without a GPU: no spills, within shared memory, within its budget.

A budget bounds the warp instructions that a token costs, a performance test that needs no device: what a change adds
to an inner loop shows here. Budgets are what Triton 3.9 gives and 3 %. Triton 3.6 makes the same of the scan and the
convolution, up to a quarter more of kernels with products, and leaves 8 bytes on the stack in two of those. All
kernels at all widths for all architectures are in benchmarks/static.py; here are the first and the last stage.
"""

import importlib.metadata
import os
from dataclasses import replace

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)
pytest.importorskip("triton")

from fmri_scale.kernels import Windows, aot
from fmri_scale.kernels.cases import STAGES, listed_windows
from fmri_scale.kernels.conv import triton as conv
from fmri_scale.kernels.launches import launches, slots
from fmri_scale.kernels.project import triton as project
from fmri_scale.kernels.scan import triton as scan
from fmri_scale.kernels.select import triton as select
from fmri_scale.kernels.strd import triton as strd

WINDOWS = Windows((8, 8, 8, 20), (4, 4, 4, 4), (2, 2, 2, 2))
OLDER = tuple(int(n) for n in importlib.metadata.version("triton").split(".")[:2]) < (3, 9)
SLACK, STACK = (1.25, 8) if OLDER else (1.0, 0)
"Times a budget, and bytes of stack a thread, that are allowed."
MANY = 1024
"Clips, so many that the tables choose the widest tile."
BUDGETS = {
    "scan_forward": {"sm_80": 328, "sm_90": 332, "sm_100": 328, "gfx942": 203},
    "scan_backward": {"sm_80": 1170, "sm_90": 1205, "sm_100": 1096, "gfx942": 722},
    "conv_forward": {"sm_80": 64, "sm_90": 64, "sm_100": 58, "gfx942": 71},
    "conv_backward": {"sm_80": 169, "sm_90": 176, "sm_100": 156, "gfx942": 158},
    "project": {"sm_80": 74, "sm_90": 73.5, "sm_100": 92, "gfx942": 103},
    "project_gradients": {"sm_80": 184, "sm_90": 173.5, "sm_100": 184.5, "gfx942": 557},
    "select_dt": {"sm_80": 58, "sm_90": 57, "sm_100": 69},
    "select_step": {"sm_80": 82.5, "sm_90": 79, "sm_100": 107},
    "select_map": {"sm_80": 87, "sm_90": 82, "sm_100": 109.5},
    "gate": {"sm_80": 128.5, "sm_90": 88.5, "sm_100": 107},
    "gate_input": {"sm_80": 102.5, "sm_90": 101.5, "sm_100": 134},
    "gate_weight": {"sm_80": 86.5, "sm_90": 77.5, "sm_100": 74.5},
    "mlp": {"sm_80": 233, "sm_90": 227, "sm_100": 262},
    "mlp_input": {"sm_80": 297, "sm_90": 289, "sm_100": 372},
    "mlp_weight": {"sm_80": 442, "sm_90": 387, "sm_100": 396},
    "unit_mask": {"sm_90": 8.8},
    "embed": {"sm_80": 511, "sm_90": 516, "sm_100": 499},
    "embed_weight": {"sm_80": 687, "sm_90": 693, "sm_100": 674},
    "embed_mask_token": {"sm_80": 64, "sm_90": 65, "sm_100": 63},
    "loss_count": {"sm_80": 10.0, "sm_90": 10.5, "sm_100": 10.5},
    "loss_feature": {"sm_80": 449, "sm_90": 452, "sm_100": 550},
    "loss_head": {"sm_80": 472, "sm_90": 489, "sm_100": 612},
    "strd": {"sm_80": 795, "sm_90": 776, "sm_100": 762},
}
"""Warp instructions (AMD: of 64 lanes) a token, of 72 channels and 16 states for scan and conv, of 36 and a hidden
layer of 144 for the others; a hidden token for the loss, a unit for the mask. mamba_ssm's own scan needs 907 forward
and 2,484 backward on sm_90."""
BRAIN_BUDGETS = {
    "embed": {"sm_80": 458, "sm_90": 477.5, "sm_100": 460.5},
    "embed_weight": {"sm_80": 489.5, "sm_90": 532, "sm_100": 514},
    "embed_mask_token": {"sm_80": 89.5, "sm_90": 87, "sm_100": 84.5},
    "loss_count": {"sm_80": 1.2, "sm_90": 1.25, "sm_100": 1.25},
    "loss_feature": {"sm_80": 506, "sm_90": 521.5, "sm_100": 694.5},
    "loss_head": {"sm_80": 547, "sm_90": 598.5, "sm_100": 643},
}
"""The same a token (hidden token) of listed patches with a mask that is given: nothing is drawn; the loss has as many
programs as if all were hidden and fetches ahead; the mask tokens' gradient walks over the whole grid."""
TARGETS = [
    (arch, op) for arch in aot.ARCHITECTURES for op in ("scan", "conv", "project", "select", "gate", "mlp", "strd")
]
TARGETS += [(arch, op) for arch in ("sm_90", "sm_100") for op in ("embed", "loss")]
TARGETS += [("sm_90", "mask"), *(("gfx942", op) for op in ("scan", "conv", "project"))]
SHAPES = {"mask": "token", "embed": "window", "loss": "window"}


def compile_launches(arch, op, stages, dtype=torch.bfloat16, batch=MANY):
    """Kernels of an operation with their launches; nothing spills, everything fits."""
    found = []
    for launch in launches(op, batch, dtype):
        if launch.stage in stages:
            with aot.compiled(arch) as entries:
                launch.call()
            found += [(entry, launch) for entry in entries]
    assert found
    for entry, _ in found:
        check(entry)
    return found


def check(entry):
    """What holds for every kernel; two programs must fit on a multiprocessor."""
    assert entry.spilled <= STACK, f"{entry.name} spills {entry.spilled} bytes on {entry.arch}: {entry.constants}"
    assert entry.shared <= aot.SHARED_LIMIT[entry.arch] // 2, f"{entry.name}: {entry.shared} bytes shared"


@pytest.mark.parametrize(("arch", "op"), TARGETS)
def test_kernels_stay_within_their_budgets(arch, op):
    for entry, launch in compile_launches(arch, op, [SHAPES.get(op, "s1")]):
        tokens_of_72 = 72 / launch.width if op in ("scan", "conv") else 1.0
        spent = slots(entry, launch)[1] * tokens_of_72
        budget = BUDGETS[entry.name.removesuffix("_kernel")][arch]
        assert budget * 0.85 < spent <= budget * SLACK, f"{entry.name} on {arch}: {spent:.1f} instructions a token"


def test_products_fetch_nothing_ahead_into_amds_small_shared_memory():
    for launch in launches("project", 8):
        with aot.compiled("gfx942") as found:
            launch.call()
        for entry in found:
            assert not entry.spilled
            assert entry.shared <= aot.SHARED_LIMIT["gfx942"], f"{entry.name} {launch.stage}: {entry.shared} bytes"


def test_last_stage_stays_within_the_same_budget():
    for entry, launch in compile_launches("sm_90", "scan", ["s4"]):
        assert slots(entry, launch)[1] * 72 / launch.width <= BUDGETS[entry.name.removesuffix("_kernel")]["sm_90"]


@pytest.mark.parametrize("op", ["embed", "loss", "gate", "mlp"])
def test_products_in_float32_do_not_spill(op):
    compile_launches("sm_80", op, ["window", "brain", "s1", "s2"], torch.float32, batch=8)


def meta(*shape, dtype=torch.bfloat16):
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    "options",
    [
        {"width": 10, "h0": True},
        {"width": 72, "reverse": True, "h0": True, "dtype": torch.float32},
        {"width": 24, "states": 8, "batch": 1},
        {"width": 12, "states": 4},
    ],
    ids=str,
)
def test_scan_compiles_for_odd_shapes(options):
    width, states, dtype = options["width"], options.get("states", 16), options.get("dtype", torch.bfloat16)
    shape = (options.get("batch", MANY), WINDOWS.num_tokens)
    x, dt, maps = (meta(*shape, n, dtype=dtype) for n in (width, width, 2 * states))
    A, D = meta(width, states, dtype=torch.float32), meta(width, dtype=torch.float32)
    h0 = A if options.get("h0") else None
    arguments = (x, dt, A, maps[..., :states], maps[..., states:], D, WINDOWS, h0, options.get("reverse", False))
    with aot.compiled("sm_90") as found:
        scan.forward(*arguments)
        scan.backward(dt, *arguments)
    assert len(found) == 2
    for entry in found:
        check(entry)


LISTED_STAGES = [replace(stage, windows=listed_windows(stage.windows, 0.5)) for stage in STAGES]


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_windows_of_listed_patches_compile_within_the_same_budgets(arch, monkeypatch):
    monkeypatch.setattr("fmri_scale.kernels.launches.STAGES", LISTED_STAGES)
    wide = [stage.name for stage in STAGES] if arch == "sm_90" else ["s1", "s4"]
    for op in ("scan", "conv"):
        for entry, launch in compile_launches(arch, op, wide):
            whole = LISTED_STAGES[int(launch.stage[1]) - 1].windows
            full = whole.num_windows * whole.length / whole.num_tokens  # counted as if every window were full
            spent = slots(entry, launch)[1] * 72 / launch.width / full
            if launch.stage == "s1":
                budget = BUDGETS[entry.name.removesuffix("_kernel")][arch]
                assert spent <= 1.05 * budget * SLACK, f"{entry.name} on {arch}: {spent:.1f} instructions a token"


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_voxels_of_listed_patches_stay_within_their_budgets(arch):
    for op in ("embed", "loss"):
        for entry, launch in compile_launches(arch, op, ["brain"]):
            budget, spent = BRAIN_BUDGETS[entry.name.removesuffix("_kernel")][arch], slots(entry, launch)[1]
            assert budget * 0.85 < spent <= budget * SLACK, f"{entry.name} on {arch}: {spent:.1f} instructions a token"


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_scores_of_windows_with_missing_tokens_compile(arch):
    with aot.compiled(arch) as found:
        for width in (36, 288):
            strd.scores(meta(8, 256, width), (4, 4, 4, 4), 5, 5, meta(8, 256, dtype=torch.bool))
    for entry in found:
        check(entry)


def test_convolution_compiles_with_a_prefix_and_odd_width():
    x, weight, bias = meta(2, WINDOWS.num_tokens, 100), meta(100, 3), meta(100)
    with aot.compiled("sm_90") as found:
        conv.forward(x, weight, bias, WINDOWS, meta(2, 100))
        conv.backward(x, x, weight, bias, WINDOWS, meta(2, 100))
    assert len(found) == 2
    for entry in found:
        check(entry)


def test_narrow_selection_and_projection_in_float32_do_not_spill():
    x, d, steps = (meta(2, 40, n, dtype=torch.float32) for n in (16, 24, 34))
    gain, weight = meta(16, dtype=torch.float32), meta(48, 16, dtype=torch.float32)
    maps, rank, state = meta(34, 24, dtype=torch.float32), meta(24, 2, dtype=torch.float32), x
    with aot.compiled("sm_80") as found:
        project.forward(x, gain, gain, weight, 1e-5)
        project.backward(d, d, None, x, gain, gain, weight, 1e-5)
        select.steps(steps, rank, rank[:, 0])
        select.backward(d, d, None, state, state, d, steps, maps, rank, rank[:, 0])
    assert len(found) == 5
    for entry in found:
        check(entry)


def test_compiling_restores_the_launcher():
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    with aot.compiled("sm_90"):
        assert JITFunction.run is not run
    assert JITFunction.run is run
