"""What a checkpoint keeps of the data: one position, and what must be unchanged for it to mean the same clips.

Also the running hash of the clips consumed, by which two runs prove that they saw the same data: a sum modulo 2^64
over hashes of (position, epoch, clip id), so that ranks add up their own parts and any split gives the same number.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fmri_scale.data.keyed import M64, fold
from fmri_scale.data.plan import Clips
from fmri_scale.errors import CheckpointError
from fmri_scale.log import get_logger

LABELS = {
    "plan_version": "the program's order of data",
    "corpus_id": "the corpus (data.corpus, data.more_corpora)",
    "samples_id": "the samples (data.split)",
    "mixing_id": "the datasets, their numbers of clips and shares (of data.weights, data.temperature and clip length)",
    "seed": "seed",
    "num_frames": "frames drawn for a clip (model.num_frames or, with a contrast, objective.span_frames)",
    "lanes": "data.lanes",
    "block": "data.shuffle_block",
    "min_jitter": "data.min_jitter",
}
"What decides the order, by its name in the state, and what a user calls it."


def clip_sum(positions: np.ndarray, clips: Clips) -> int:
    """Return the part of the running hash that these clips add: positions int64 [n] and their clips, to 64 bits."""
    parts = fold(
        fold(fold(0, positions.astype(np.uint64)), clips.epoch.astype(np.uint64)), clips.clip_id.astype(np.uint64)
    )
    return int(parts.sum(dtype=np.uint64)) & M64


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any], allow_change: bool) -> None:
    """Compare what decided the order when the state was saved with what decides it now.

    Raises
    ------
    CheckpointError
        They differ and `allow_change` is False; the message names every difference.
    """
    absent = [name for name in (*LABELS, "position") if name not in saved]
    if absent:
        raise CheckpointError(f"the checkpoint's data state has no {absent[0]!r}; it was not written by this program")
    differ = [f"{text} was {saved[name]}, is {now[name]}" for name, text in LABELS.items() if saved[name] != now[name]]
    if not differ:
        return
    message = "the order of the data is not the one of the checkpoint: " + "; ".join(differ)
    if not allow_change:
        raise CheckpointError(f"{message}; restore it, or set checkpoint.allow_change=true to go on in the new order")
    get_logger(__name__).warning("%s; going on at clip %s of the new order", message, saved["position"])
