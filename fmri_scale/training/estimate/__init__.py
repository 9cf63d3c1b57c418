"""What a run will take before it is queued: memory, step time, reading, communication, duration; by arithmetic.

Read in this order: devices.py (what hardware can do), memory.py (bytes of a rank by part), speed.py (time of a step),
communication.py (bytes between ranks), job.py (all of it for a configuration). Starts no training.
"""

from fmri_scale.training.estimate.job import Estimate, checkpoint_bytes, estimate

__all__ = ["Estimate", "checkpoint_bytes", "estimate"]
