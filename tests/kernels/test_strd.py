"""Redundancy scores: equal to the published numbers, the same in blocks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fmri_scale.kernels import strd
from fmri_scale.kernels.strd import cpu
from fmri_scale.kernels.strd.op import strd_scores_op

GOLDEN = Path(__file__).parent.parent / "golden"


def test_scores_equal_the_published_ones():
    case = json.loads((GOLDEN / "strd.json").read_text())
    values = load_file(GOLDEN / "strd.safetensors")
    ours = strd.scores(values["h"], case["window_size"], case["strd_l_spat"], case["strd_l_temp"])
    torch.testing.assert_close(ours, values["score"], rtol=1e-5, atol=1e-7)


def test_blocks_of_windows_change_nothing(monkeypatch):
    h = torch.randn(7, 32, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = strd.scores(h, (2, 2, 2, 4), 3, 5)
    monkeypatch.setattr(cpu, "BLOCK_WINDOWS", 3)
    torch.testing.assert_close(strd.scores(h, (2, 2, 2, 4), 3, 5), whole)
    assert 0.0 < whole.min() <= whole.max() <= 1.0


def test_window_without_neighbours_drops_nothing():
    h = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(strd.scores(h, (2, 2, 1, 1), 1, 1), torch.zeros(2, 4))


def test_scores_pass_opcheck():
    h = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(strd_scores_op, (h, [2, 2, 1, 2], 3, 3, "auto"))


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match="h is"):
        strd.scores(torch.zeros(2, 5, 3), (2, 2, 1, 1))
