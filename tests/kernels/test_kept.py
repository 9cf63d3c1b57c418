"""Tables that are kept serve every later call, whatever mode the first one came in."""

import pytest
import torch

from fmri_scale.kernels.clips import slot_of_token, unit_of_token
from fmri_scale.kernels.kept import kept
from fmri_scale.kernels.strd.redundancy import _near
from fmri_scale.kernels.strd.reference import neighbourhoods
from fmri_scale.kernels.windows import Windows

CPU = torch.device("cpu")
TABLES = {
    "order": lambda: Windows((2, 4, 6, 10), (2, 2, 2, 2), (1, 1, 0, 1)).order(),
    "slots": lambda: slot_of_token((2, 4, 6, 10), (2, 2, 2, 2), CPU),
    "units": lambda: unit_of_token((2, 4, 6, 10), (2, 2, 2, 2), CPU),
    "neighbours": lambda: neighbourhoods((2, 2, 2, 5), 3, 3)[0],
    "near": lambda: _near((2, 2, 2, 5), 3, 3, CPU)[0],
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_first_asked_for_in_inference_serves_training(name):
    with torch.inference_mode():
        table = TABLES[name]()
    assert not table.is_inference()
    assert TABLES[name]() is table


def test_functions_are_called_once_and_keep_their_name():
    calls = []

    @kept(2)
    def table(n):
        """Doc."""
        calls.append(n)
        return torch.arange(n)

    assert table(3) is table(3)
    assert (calls, table.__name__, table.__doc__) == ([3], "table", "Doc.")
