"""The backbone before training: a released model with the weights a run begins with, as a baseline for its features."""

import hashlib

from fmri_scale.models import init_weights
from fmri_scale.release import Pretrained


def untrained(model: Pretrained, seed: int) -> Pretrained:
    """Put the weights of `seed`, as a run of that seed draws them, into a released model, and name it accordingly.

    Architecture, preprocessing and mask stay; the model given is changed and returned.
    """
    init_weights(model.model, seed)
    model.identity = hashlib.sha256(f"{model.identity} untrained {seed}".encode()).hexdigest()
    return model.eval()
