"""What a reader is asked for, and the memory it fills: no torch here, for reader processes must start quickly.

A `ClipRequest` holds byte positions and checksums of one clip, taken from the sample table, so that a reader needs
neither the index nor the plan. A `SlotLayout` says where the parts of a micro-batch lie in a slot of memory.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ALIGN = 4096
"Bytes: slots and their parts begin at pages."


class ClipRequest(NamedTuple):
    """Where one clip lies: byte offsets of the members' payloads in the shard, and xxh3_64 of the small ones."""

    shard: int
    row: int
    n_frames: int
    start_frame: int
    bold_offset: int
    frame_xxh3_offset: int
    frame_xxh3_xxh3: int
    scale_offset: int
    scale_xxh3: int
    stats_offset: int
    stats_xxh3: int


@dataclass(frozen=True)
class SlotLayout:
    """Parts of a slot that holds up to `batch` clips: codes, then scale, then (where wanted) stats."""

    batch: int
    num_frames: int
    num_voxels: int
    with_stats: bool
    header_bytes: int
    "Bytes before the data of a member."

    @property
    def codes_bytes(self) -> int:
        """Bytes of the codes, rounded up to pages."""
        return _round_up(self.batch * self.num_frames * self.num_voxels)

    @property
    def planes_bytes(self) -> int:
        """Bytes of the scale, or of the stats, rounded up to pages."""
        return _round_up(self.batch * 4 * self.num_voxels)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot."""
        return self.codes_bytes + self.planes_bytes * (2 if self.with_stats else 1)

    def views(self, memory: np.ndarray, count: int) -> "SlotViews":
        """Return arrays over a slot's memory, uint8 [slot_bytes], for its first `count` clips."""
        v, t = self.num_voxels, self.num_frames
        at = self.codes_bytes
        codes = memory[: count * t * v].view(np.int8).reshape(count, t, v)
        scale = memory[at : at + count * 4 * v].view(np.float16).reshape(count, 2, v)
        at += self.planes_bytes
        stats = memory[at : at + count * 4 * v].view(np.float16).reshape(count, 2, v) if self.with_stats else None
        return SlotViews(codes, scale, stats)


@dataclass
class Job:
    """Clips to be read into one slot: the place of each in the slot, and where it lies.

    faults: after reading, the places that could not be filled, with the reasons; retries: reads that were repeated.
    """

    number: int
    slot: int
    clips: list[tuple[int, ClipRequest]]
    faults: dict[int, str]
    retries: int = 0
    done: bool = False


class SlotViews(NamedTuple):
    """Arrays over a slot: codes int8 [B, T, V], scale and stats float16 [B, 2, V]."""

    codes: np.ndarray
    scale: np.ndarray
    stats: np.ndarray | None


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // ALIGN) * ALIGN
