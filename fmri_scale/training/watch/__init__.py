"""What looks after a run while it goes: spikes, ranks that drift apart, hangs, slow ranks, the disk, the job's end.

`Watch` asks each of them at its time; every file here is one of them. Numbers that are not finite: training/guards.py.
"""

from fmri_scale.training.watch.watch import Watch

__all__ = ["Watch"]
