"""The Triton redundancy scores, interpreted, against their definition in float64."""

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels import strd
from fmri_scale.kernels.strd import cases, reference


@pytest.mark.parametrize("case", cases.SMALL, ids=str)
@pytest.mark.parametrize("size", [0.1, 1.0, 20.0])
def test_scores(case, size):
    _, window, _, l_spat, l_temp = case
    h = cases.make_inputs(case, torch.float32) * size
    expected = reference.scores(h.double(), window, l_spat, l_temp)
    found = strd.scores(h, window, l_spat, l_temp, backend="triton")
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-7)


def test_float64_scores_are_refused():
    with pytest.raises(ConfigError, match="take torch for float64"):
        strd.scores(torch.zeros(1, 4, 3, dtype=torch.float64), (2, 2, 1, 1), backend="triton")
