"""The loss's kernels at the base model's shapes, compiled for each GPU: no spills, within shared memory."""

import pytest
import torch

from fmri_scale.kernels import backends
from fmri_scale.kernels.loss import cases

pytestmark = pytest.mark.skipif(not backends.has_triton(), reason="triton is not installed")
TARGETS = [("sm_80", "float32"), ("sm_80", "bfloat16"), ("sm_90", "bfloat16"), ("sm_100", "bfloat16")]


@pytest.mark.parametrize(("arch", "dtype"), TARGETS)
def test_loss_compiles_without_spills(arch, dtype):
    from fmri_scale.kernels import aot
    from fmri_scale.kernels.loss import triton

    clips, hidden = cases.meta_inputs(cases.base_case(8))
    features = torch.empty(8, 81_920, 36, dtype=getattr(torch, dtype), device="meta")
    weight, bias = features.new_empty(216, 36), features.new_empty(216)
    with aot.compiled(arch) as kernels:
        triton.forward(clips, features, weight, bias, hidden, True, True)
    assert [k.name for k in kernels] == ["loss_count_kernel", "loss_feature_kernel", "loss_head_kernel"]
    assert {k.name: k.spilled for k in kernels if k.spilled} == {}
    assert all(k.shared <= aot.SHARED_LIMIT[arch] // 2 for k in kernels), "two programs must fit on a multiprocessor"
