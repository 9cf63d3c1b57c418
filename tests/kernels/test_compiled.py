"""Every kernel compiles for every architecture without a GPU: no spills, within shared memory, within its budget.

A budget is a bound on machine instructions, a performance test that needs no device: what a change adds to an inner
loop shows here. The counts are those of Triton 3.9; 3.6 gives the same within 3 %.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from fmri_scale.kernels import Windows, aot
from fmri_scale.kernels.conv import triton as conv
from fmri_scale.kernels.mask import triton as mask
from fmri_scale.kernels.scan import triton as scan

WIDTHS = (72, 144, 288, 576)
WINDOWS = Windows((8, 8, 8, 20), (4, 4, 4, 4), (2, 2, 2, 2))
LAST = Windows((2, 2, 2, 20), (2, 2, 2, 4))
SCAN_SLOTS = {"sm_80": (330, 1190), "sm_90": (335, 1215), "sm_100": (330, 1130)}
"Warp instructions a token of 72 channels and 16 states, forward and backward."


def meta(*shape, dtype=torch.bfloat16):
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def scan_arguments(width, windows=WINDOWS, states=16, dtype=torch.bfloat16, h0=False, reverse=False):
    """Inputs as the model makes them: x beside z, B and C beside dt's projection."""
    tokens = windows.num_tokens
    x = meta(2, tokens, 2 * width, dtype=dtype)[..., :width]
    maps = meta(2, tokens, 3 + 2 * states, dtype=dtype)
    parameters = (meta(width, states, dtype=torch.float32), meta(width, dtype=torch.float32))
    start = meta(width, states, dtype=torch.float32) if h0 else None
    B, C = maps[..., 3 : 3 + states], maps[..., 3 + states :]
    return (x, meta(2, tokens, width, dtype=dtype), parameters[0], B, C, parameters[1], windows, start, reverse)


def check(entries):
    """Assert what holds for every kernel; return them."""
    assert entries
    for entry in entries:
        assert entry.spilled == 0, f"{entry.name} spills {entry.spilled} bytes on {entry.arch}: {entry.constants}"
        assert entry.shared <= aot.SHARED_LIMIT[entry.arch], f"{entry.name}: {entry.shared} bytes shared"
    return entries


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
@pytest.mark.parametrize("width", WIDTHS)
def test_scan_stays_within_its_budget(arch, width):
    arguments = scan_arguments(width, LAST if width == 576 else WINDOWS)
    with aot.compiled(arch) as found:
        scan.forward(*arguments)
        scan.backward(meta(*arguments[1].shape), *arguments)
    forward, backward = check(found)
    for entry, budget in ((forward, SCAN_SLOTS[arch][0]), (backward, SCAN_SLOTS[arch][1])):
        per_token = sum(loop.instructions for loop in entry.loops) / entry.constants["UNROLL"]
        channels = entry.constants["MAIN"] + entry.constants["TAIL"]
        assert per_token * 72 / channels <= budget, f"{entry.name} {arch}: {per_token} for {channels} channels"


@pytest.mark.parametrize(
    "options",
    [
        {"width": 100, "h0": True},
        {"width": 72, "reverse": True, "h0": True},
        {"width": 72, "dtype": torch.float32},
        {"width": 24, "states": 8},
        {"width": 40, "states": 4},
        {"width": 12, "states": 4},
    ],
    ids=str,
)
def test_scan_compiles_for_odd_shapes(options):
    arguments = scan_arguments(**options)
    with aot.compiled("sm_90") as found:
        scan.forward(*arguments)
        scan.backward(meta(*arguments[1].shape, dtype=arguments[1].dtype), *arguments)
    assert len(check(found)) == 2


@pytest.mark.parametrize("width", WIDTHS)
def test_scan_compiles_for_amd(width):
    arguments = scan_arguments(width)
    with aot.compiled("gfx942") as found:
        scan.forward(*arguments)
        scan.backward(meta(*arguments[1].shape), *arguments)
    assert [entry.registers <= 256 for entry in check(found)] == [True, True]


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
@pytest.mark.parametrize("width", WIDTHS)
def test_convolution_stays_within_its_budget(arch, width):
    windows = LAST if width == 576 else WINDOWS
    x = meta(2, windows.num_tokens, 2 * width)[..., :width]
    weight, bias = meta(width, 4, dtype=torch.float32), meta(width, dtype=torch.float32)
    with aot.compiled(arch) as found:
        conv.forward(x, weight, bias, windows, None)
        conv.backward(meta(2, windows.num_tokens, width), x, weight, bias, windows, None)
    for entry, extra, budget in zip(check(found), (0, 3), (33, 80), strict=True):
        steps = entry.constants["RUN"] + extra
        values = windows.length * (entry.constants["MAIN"] + entry.constants["TAIL"])
        lanes = sum(loop.instructions for loop in entry.loops) * steps * 32 * entry.num_warps
        assert lanes / values <= budget, f"{entry.name} {arch}: {lanes / values:.1f} lane instructions a value"


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_mask_stays_within_its_registers(arch):
    with aot.compiled(arch) as found:
        for units in (5, 320, 81_920):
            ids = meta(4, dtype=torch.int64)
            mask.unit_mask(3, ids, ids, units, units // 2)
    assert [entry.registers <= 48 for entry in check(found)] == [True] * 3


def test_compiling_restores_the_launcher():
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    with aot.compiled("sm_90"):
        assert JITFunction.run is not run
    assert JITFunction.run is run
