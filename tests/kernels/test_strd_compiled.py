"""The kernel of the redundancy scores at the base model's shapes, compiled for each GPU: no spills."""

import pytest
import torch

from fmri_scale.kernels import backends
from fmri_scale.kernels.strd import cases

pytestmark = pytest.mark.skipif(not backends.has_triton(), reason="triton is not installed")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_scores_compile_without_spills(arch):
    from fmri_scale.kernels import aot
    from fmri_scale.kernels.strd import triton

    first, *_, last = cases.stage_cases(8)
    targets = [(first, torch.bfloat16), (last, torch.bfloat16), (first, torch.float32)]
    with aot.compiled(arch) as kernels:
        for (windows, window, width, l_spat, l_temp), dtype in targets:
            length = window[0] * window[1] * window[2] * window[3]
            h = torch.empty(windows, length, width, dtype=dtype, device="meta")
            triton.scores(h, window, l_spat, l_temp)
    assert [k.name for k in kernels] == ["strd_kernel"] * len(targets)
    assert [k.spilled for k in kernels] == [0] * len(targets)
    assert all(k.shared <= aot.SHARED_LIMIT[arch] // 2 for k in kernels), "two programs must fit on a multiprocessor"
