"""The stream of micro-batches that one rank trains on.

In: opened corpora, the data configuration, and which rank of how many this is. Out: an endless iterator of `ClipBatch`
and a state of a few numbers. Micro-step m of all ranks together takes the next micro_batch * world_size positions of
the plan, rank r the r-th part of them: so the order does not depend on the number of ranks, and every rank has equally
many batches. Reading ahead does not move `position`; only `advance` does, called after the optimizer step.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmri_scale.config import DataConfig
from fmri_scale.data.assemble import assemble
from fmri_scale.data.batch import ClipBatch
from fmri_scale.data.corpora import source_spec
from fmri_scale.data.faults import BadClip, FaultLog
from fmri_scale.data.pinning import pin
from fmri_scale.data.plan import Clip, Clips, Order, Plan, share
from fmri_scale.data.request import Job, SlotLayout
from fmri_scale.data.slots import Slots
from fmri_scale.data.state import check_identity, clip_sum
from fmri_scale.data.table import sample_table
from fmri_scale.errors import ConfigError, DataError
from fmri_scale.log import get_logger
from sharding.corpus import Corpus
from sharding.format import NPY_HEADER_BYTES

LOOK_AHEAD = 512
"Clips looked up in the plan at once."

SUBSTITUTES = 8
"Stand-ins tried for one bad clip before the run stops."


@dataclass
class MicroBatch:
    """A micro-batch on its way: positions int64 [B], the clips planned there, and the job that reads them."""

    positions: np.ndarray
    clips: Clips
    job: Job


class ClipStream:
    """Endless micro-batches of one rank.

    Attributes
    ----------
    position
        Clips that all ranks have consumed.
    clip_hash
        Running hash of their ids (see state.py), the same on every rank.
    delivered, delivered_hash
        Clips that this rank was given since the stream began or was resumed, and its part of the hash.
    consumed, consumed_hash
        Clips counted by `advance` since then, and what they add to the hash; check_ranks compares the two.
    faults
        Clips that could not be read.

    Parameters
    ----------
    corpus
        One corpus, or several of one mask and TR.
    config
        Section `data` of the configuration.
    num_frames
        T, frames of a clip.
    global_batch, micro_batch
        Clips of an optimizer step over all ranks, and of a forward pass of one rank.
    rank, world_size
        Of the data-parallel group.
    seed
        Seed of the order.
    position
        Clips that were consumed before.
    quarantine
        File to which unreadable clips are appended.

    Raises
    ------
    ConfigError
        The global batch is not a multiple of micro_batch * world_size.
    DataError
        The corpora cannot be used; later, by `next`, a clip cannot be read.
    """

    def __init__(
        self,
        corpus: Corpus | Sequence[Corpus],
        config: DataConfig,
        num_frames: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        position: int = 0,
        quarantine: Path | None = None,
    ) -> None:
        _check_split(global_batch, micro_batch, world_size)
        corpora = [corpus] if isinstance(corpus, Corpus) else list(corpus)
        self.config, self.rank, self.world_size, self.micro_batch = config, rank, world_size, micro_batch
        self._slots = Slots(config, self._where)  # first, since readers take as long to start as the index to be read
        try:
            self._open(corpora, num_frames, seed)
        except BaseException:
            self._slots.close()
            raise
        self.faults = FaultLog(config.on_bad_sample, config.max_bad_fraction, config.max_bad_clips, rank, quarantine)
        self._pending: deque[MicroBatch] = deque()
        self.clip_hash = 0
        self.delivered = self.delivered_hash = self.consumed = self.consumed_hash = 0
        self._restart(position)
        self._log_plan()

    def _open(self, corpora: list[Corpus], num_frames: int, seed: int) -> None:
        """Read the index, make the plan, and tell the readers of both."""
        config = self.config
        self.table = sample_table(corpora, config.split)
        order = Order(num_frames, seed, config.lanes, config.shuffle_block, config.min_jitter)
        self.plan = Plan(self.table, order, config.weights, config.temperature)
        with_stats = config.normalisation == "voxel_z"
        layout = SlotLayout(self.micro_batch, num_frames, self.table.num_voxels, with_stats, NPY_HEADER_BYTES)
        self._slots.open(layout, source_spec(corpora, self.table, config))
        pin(self._slots.ring)

    def _log_plan(self) -> None:
        log = get_logger(__name__).info if self.rank == 0 else get_logger(__name__).debug
        for row in self.plan.report():
            log(
                "data %s: %d samples (%d too short), an epoch is %d clips, %d frames; %.1f %% of the stream",
                *(row[name] for name in ("dataset", "samples", "samples_too_short", "clips_per_epoch")),
                row["frames_per_epoch"],
                100 * row["share"],
            )
        log("data plan %s", self.plan.hash())

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        self._read_ahead()
        micro = self._pending[0]
        self._slots.wait(micro.job)
        clips = self._mend(micro)
        self._pending.popleft()
        self.delivered += len(micro.positions)
        self.delivered_hash = (self.delivered_hash + clip_sum(micro.positions, micro.clips)) % 2**64
        views, loan = self._slots.lend(micro.job, len(micro.positions))
        return assemble(self.table, micro.positions, clips, views, loan)

    def advance(self, num_clips: int) -> None:
        """Count clips of all ranks as consumed; call it when the optimizer has made its step with them."""
        positions = np.arange(self.position, self.position + num_clips, dtype=np.int64)
        added = clip_sum(positions, self.plan.clips(positions))
        self.clip_hash = (self.clip_hash + added) % 2**64
        self.consumed_hash = (self.consumed_hash + added) % 2**64
        self.position += num_clips
        self.consumed += num_clips

    def state_dict(self) -> dict[str, Any]:
        """Return the position, what decides the order, and the running hash; the same on every rank."""
        return {"position": self.position, **self.plan.identity(), "clip_hash": self.clip_hash}

    def load_state_dict(self, state: dict[str, Any], allow_change: bool = False) -> None:
        """Continue where `state` was saved, with any number of ranks.

        Raises
        ------
        CheckpointError
            The order of the data is another one (see state.check_identity) and `allow_change` is False.
        """
        check_identity(state, self.plan.identity(), allow_change)
        self._restart(int(state["position"]))
        self.clip_hash = int(state.get("clip_hash", 0))

    def close(self) -> None:
        """Stop reading and let go of shards and memory."""
        self._pending.clear()
        self._slots.close()

    def _restart(self, position: int) -> None:
        """Forget what was read ahead and go on at a position."""
        while self._pending:
            self._slots.drop(self._pending.popleft().job)
        self.position = self._looked_up = position
        self._ahead: deque[tuple[np.ndarray, Clips]] = deque()
        self.delivered = self.delivered_hash = self.consumed = self.consumed_hash = 0

    def _read_ahead(self) -> None:
        """Have micro-batches read while there is room, and at least the next one."""
        while self._slots.has_room or not self._pending:
            if not self._ahead:
                self._look_up()
            positions, clips = self._ahead.popleft()
            requests = self.table.requests(clips.sample, clips.start_frame)
            self._pending.append(MicroBatch(positions, clips, self._slots.submit(list(enumerate(requests)))))

    def _look_up(self) -> None:
        """Ask the plan for the next micro-batches of this rank, many at once (1 us a clip instead of 10)."""
        steps = max(1, LOOK_AHEAD // self.micro_batch)
        positions = share(self._looked_up, self.micro_batch, self.rank, self.world_size, range(steps))
        clips = self.plan.clips(positions.ravel())
        for step in range(steps):
            here = slice(step * self.micro_batch, (step + 1) * self.micro_batch)
            self._ahead.append((positions[step], Clips(*(column[here] for column in clips))))
        self._looked_up += self.micro_batch * self.world_size * steps

    def _mend(self, micro: MicroBatch) -> Clips:
        """Return the clips that were read, each unreadable one replaced by policy; raise where that is the policy."""
        clips = Clips(*(column.copy() for column in micro.clips))
        for attempt in range(SUBSTITUTES + 1):
            self.faults.repeated(micro.job.retries, self._where(micro.job))
            faults = micro.job.faults
            if not faults:
                return clips
            if attempt == SUBSTITUTES:
                break
            again = []
            for place, reason in faults.items():
                k = int(micro.positions[place])
                bad = Clip(*(int(column[place]) for column in clips))
                instead = self.plan.substitute(k, attempt) if self.config.on_bad_sample == "substitute" else None
                self.faults.add(self._bad_clip(k, bad, instead, reason))
                assert instead is not None, "the log raises where nothing may stand in"
                for column, value in zip(clips, instead, strict=True):
                    column[place] = value
                rows, starts = np.array([instead.sample]), np.array([instead.start_frame])
                again.append((place, self.table.requests(rows, starts)[0]))
            micro.job = self._slots.submit_to(micro.job.slot, again)
            self._slots.wait(micro.job)
        raise DataError(f"clip {micro.positions[0]}: {SUBSTITUTES} clips in a row cannot be read: {faults}")

    def _bad_clip(self, k: int, clip: Clip, instead: Clip | None, reason: str) -> BadClip:
        shard = self.table.shards[int(self.table.shard[clip.sample])].name
        name = f"{self.table.key(instead.sample)} from frame {instead.start_frame}" if instead else ""
        return BadClip(self.rank, k, shard, self.table.key(clip.sample), clip.start_frame, reason, name)

    def _where(self, job: Job) -> str:
        """Say what a job reads."""
        return ", ".join(
            f"{self.table.where(request.row)} from frame {request.start_frame} (byte {request.bold_offset})"
            for _, request in job.clips
        )


def _check_split(global_batch: int, micro_batch: int, world_size: int) -> None:
    together = micro_batch * world_size
    if global_batch % together:
        raise ConfigError(
            f"optim.global_batch={global_batch} is not a multiple of optim.micro_batch={micro_batch} times "
            f"{world_size} ranks; the nearest are {global_batch // together * together or together} and "
            f"{-(-global_batch // together) * together}"
        )
