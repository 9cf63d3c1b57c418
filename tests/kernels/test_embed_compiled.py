"""The embedding's kernels at the base model's shapes, compiled for each GPU: no spills, within shared memory."""

import pytest
import torch

from fmri_scale.kernels import backends
from fmri_scale.kernels.embed import cases

pytestmark = pytest.mark.skipif(not backends.has_triton(), reason="triton is not installed")


@pytest.mark.parametrize(
    ("arch", "dtype"), [("sm_80", "float32"), *((a, "bfloat16") for a in ("sm_80", "sm_90", "sm_100"))]
)
def test_embedding_compiles_without_spills(arch, dtype):
    from fmri_scale.kernels import aot
    from fmri_scale.kernels.embed import triton

    case = cases.base_case(8)
    clips, hidden = cases.meta_inputs(case)
    parameters = [v.to("meta", getattr(torch, dtype)) for v in cases.make_parameters(case, torch.float32).values()]
    with aot.compiled(arch) as kernels:
        tokens = triton.forward(clips, *parameters, hidden, case.slots)
        triton.backward(tokens, clips, *parameters, hidden, case.slots)
    assert [k.name for k in kernels] == ["embed_kernel", "embed_weight_kernel", "embed_mask_token_kernel"]
    assert {k.name: k.spilled for k in kernels if k.spilled} == {}
    assert all(k.shared <= aot.SHARED_LIMIT[arch] // 2 for k in kernels), "two programs must fit on a multiprocessor"
