"""Ranks compare notes: the same plan, the same position, every clip delivered once, and not too many bad ones.

A collective operation: call it on all ranks at the start, and whenever a checkpoint is made. Where something is wrong
it raises the same error on all of them, so that they stop together and none waits for another.
"""

from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from fmri_scale.data.faults import BadClip, budget_message, over_budget
from fmri_scale.data.stream import ClipStream
from fmri_scale.errors import DataError


def check_ranks(stream: ClipStream, group: Any = None) -> None:
    """Compare this rank's stream with those of all others; alone, check it by itself.

    Parameters
    ----------
    stream
        This rank's.
    group
        Data-parallel process group; None is the default one.

    Raises
    ------
    DataError
        Plans or positions differ, the clips delivered are not those of the plan, or the budget of bad clips is spent.
    """
    mine = _notes(stream)
    if dist.is_available() and dist.is_initialized():
        notes: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(notes, mine, group=group)
    else:
        notes = [mine]
    compare(notes, stream.faults.max_fraction, stream.faults.max_clips)


def compare(notes: list[dict[str, Any]], max_fraction: float, max_clips: int) -> None:
    """Raise DataError unless the notes of all ranks fit together."""
    for name in ("plan", "position", "clip_hash", "consumed", "consumed_hash"):
        values = {str(note[name]): note["rank"] for note in notes}
        if len(values) > 1:
            told = ", ".join(f"rank {rank} has {value}" for value, rank in values.items())
            raise DataError(f"ranks do not agree on the data's {name}: {told}; start all with one configuration")
    delivered = sum(note["delivered"] for note in notes)
    hashes = sum(note["delivered_hash"] for note in notes) % 2**64
    # Between optimizer steps the clips of a step may be on their way; then there is nothing to compare.
    if delivered == notes[0]["consumed"] and hashes != notes[0]["consumed_hash"]:
        raise DataError("the clips that the ranks were given are not those of the plan; this is a defect, report it")
    bad = [BadClip(**clip) for note in notes for clip in note["bad"]]
    # Both are counted from the start or resume: a long run would else forgive a store that fails after a resume.
    if over_budget(len(bad), notes[0]["consumed"], max_fraction, max_clips):
        raise DataError(budget_message(bad, notes[0]["consumed"], max_fraction))


def _notes(stream: ClipStream) -> dict[str, Any]:
    return {
        "rank": stream.rank,
        "plan": stream.plan.hash(),
        "position": stream.position,
        "clip_hash": stream.clip_hash,
        "consumed": stream.consumed,
        "consumed_hash": stream.consumed_hash,
        "delivered": stream.delivered,
        "delivered_hash": stream.delivered_hash,
        "bad": [asdict(clip) for clip in stream.faults.bad],
    }
