"""A process on a CPU uses the memory of freed tensors again."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, torch
from fmri_scale.kernels.memory import reuse_freed_memory
if sys.argv[1] == "reuse" and not reuse_freed_memory():
    sys.exit("unknown")
for _ in range(20):  # the heap grows a few times before it fits
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    run = subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, text=True, check=False)
    if run.stderr.strip() == "unknown":
        pytest.skip("this C library has no mallopt")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_large_tensors_freed_and_made_again_hardly_touch_new_pages():
    assert 5 * faults("reuse") < faults("plain")
