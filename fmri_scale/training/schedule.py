"""The learning rate as a pure function of the step: linear warm-up, then a cosine to a floor.

Steps are counted by the run, not by DeepSpeed: a step that was skipped for a non-finite gradient counts too, so
that rate, data position and step stay tied together through kills and resumes.
"""

import math

from fmri_scale.config import OptimConfig


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Return the learning rate of a step.

    Parameters
    ----------
    step : steps done before this one, from 0.

    Notes
    -----
    The first of `warmup_steps` steps has lr / warmup_steps, the last of them lr; the run's last step has
    lr * min_lr_ratio. A run of no more than `warmup_steps` steps only warms up.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    span = max(1, optim.steps - 1 - optim.warmup_steps)
    progress = min(1.0, (step - optim.warmup_steps) / span)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * (optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * cosine)
