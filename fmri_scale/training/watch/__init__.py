"""What looks after a run while it goes: spikes, weights that are not finite or drift apart,
hangs, slow ranks, the disk, the job's end.

`Watch` or the loop asks each of them at its time; every file here is one of them. Losses and gradients that are not
finite: training/guards.py.
"""

from fmri_scale.training.watch.watch import Watch

__all__ = ["Watch"]
