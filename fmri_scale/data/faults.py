"""Clips that could not be read: each one named, counted, written down, and too many of them stop the run.

The list on disk (quarantine.jsonl of the run, a line per bad clip) is for people and for `fmri-shards verify`; nothing
reads it back, so it changes no order.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from fmri_scale.errors import DataError
from fmri_scale.log import get_logger

NAMED = 4
"Bad clips named in an error."


@dataclass(frozen=True)
class BadClip:
    """A clip that could not be read: its place in the stream, what stood in for it, and why."""

    rank: int
    position: int
    shard: str
    key: str
    start_frame: int
    reason: str
    substitute: str


class FaultLog:
    """The bad clips of one rank.

    Parameters
    ----------
    policy
        raise or substitute.
    max_fraction, max_clips
        Budget: the substitutes of all ranks stop the run (agreement.check_ranks) when they are more than max_clips and
        more than this share of all clips.
    quarantine
        File to which bad clips are appended; None writes none.
    """

    def __init__(
        self, policy: str, max_fraction: float, max_clips: int, rank: int = 0, quarantine: Path | None = None
    ) -> None:
        self.policy, self.max_fraction, self.max_clips, self.rank = policy, max_fraction, max_clips, rank
        self.bad: list[BadClip] = []
        self.retries = 0
        self._quarantine = quarantine

    def repeated(self, reads: int, what: str) -> None:
        """Count reads that were repeated, and say of what: a store on its way to fail is seen before it does."""
        if reads:
            self.retries += reads
            get_logger(__name__).info("%d reads were repeated, of %s", reads, what)

    def add(self, clip: BadClip) -> None:
        """Write a bad clip down; DataError where the policy is to stop at the first."""
        self.bad.append(clip)
        get_logger(__name__).warning("bad clip: %s", describe(clip))
        if self._quarantine is not None:
            self._quarantine.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps(asdict(clip)) + "\n"
            file = os.open(self._quarantine, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line.encode())  # one write, so that lines of several ranks do not mix
            finally:
                os.close(file)
        if self.policy == "raise":
            raise DataError(
                f"{describe(clip)}; restore the shard, or set data.on_bad_sample=substitute to go on without it"
            )


def over_budget(bad: int, consumed: int, max_fraction: float, max_clips: int) -> bool:
    """Tell whether so many bad clips among those consumed are too many."""
    return bad > max_clips and bad > max_fraction * consumed


def budget_message(bad: list[BadClip], consumed: int, max_fraction: float) -> str:
    """Return what to say when too many clips are bad."""
    names = "; ".join(describe(clip) for clip in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return (
        f"{len(bad)} of {consumed} clips could not be read, more than data.max_bad_fraction={max_fraction} allows; "
        f"check the storage and run fmri-shards verify: {names}{more}"
    )


def describe(clip: BadClip) -> str:
    """Return a line about a bad clip."""
    instead = f"; {clip.substitute} stands in" if clip.substitute else ""
    return f"{clip.shard}: {clip.key} from frame {clip.start_frame} (clip {clip.position}): {clip.reason}{instead}"
