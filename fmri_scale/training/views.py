"""Two clips of one run out of a longer stretch of it, for losses that compare clips of a run.

The stream gives stretches of `stretch_frames`; where in it the two clips lie is drawn from (seed, epoch, clip id), as
augmentation is, so it depends on neither ranks nor a resume.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fmri_scale.config import Config
from fmri_scale.data import ClipBatch
from fmri_scale.data.augmentation import clip_keys
from fmri_scale.data.keyed import key_of, uniform

PLACE, VIEW = 31, 32
"Separate these random numbers from others of a clip."


def stretch_frames(config: Config) -> int:
    """Return the frames that the stream gives at a time: a clip's, or those in which two clips are drawn."""
    if not config.objective.contrasts:
        return config.model.num_frames
    return config.objective.span_frames or 2 * config.model.num_frames


def pair_starts(batch: ClipBatch, seed: int, num_frames: int) -> Tensor:
    """Draw the first frames of two clips of each stretch that share no frame, int64 [B, 2], in random order."""
    free = batch.codes.shape[1] - 2 * num_frames + 1
    found = []
    for key in clip_keys(batch, seed):
        one, other = sorted(int(uniform(key_of(key, PLACE, i)) * free) for i in (0, 1))
        pair = (one, other + num_frames)
        found.append(pair if uniform(key_of(key, PLACE, 2)) < 0.5 else pair[::-1])
    return torch.tensor(found, dtype=torch.int64)


def cut(batch: ClipBatch, starts: Tensor, num_frames: int) -> ClipBatch:
    """Return the clips of `num_frames` frames that begin at `starts`, int64 [B], of each stretch."""
    frames = starts[:, None] + torch.arange(num_frames)
    codes = batch.codes[torch.arange(len(batch))[:, None], frames]
    return replace(batch, codes=codes, start_frame=batch.start_frame + starts.to(batch.start_frame.device))


def view_seed(seed: int, view: int) -> int:
    """Return the seed of the changes of a view; the first has the run's own."""
    return key_of(seed, VIEW, view) >> 1 if view else seed
