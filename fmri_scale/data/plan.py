"""The order of the data: a pure function from the position in the stream to a clip.

In: a sample table, a seed and the settings of the order. Out: for position k (clips consumed globally since the
start of the run) the epoch, the sample, its first frame and the clip's id. The stream has no end: an epoch is only a
number in it, without padding, dropped clips or a barrier. Neither ranks nor readers occur here; they divide positions
among themselves, so their number changes nothing. Nothing is read here.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fmri_scale.data.keyed import key_of
from fmri_scale.data.mixing import Mixture, block_counts, shares_of
from fmri_scale.data.pool import Pool, clips_per_sample
from fmri_scale.data.table import SampleTable
from fmri_scale.errors import DataError

VERSION = 1
"Raised when the same settings would give another order."

ORDER, MIXING = 1, 2
"Separate the random numbers of the order of a pool from those of the mixing of pools."


class Clip(NamedTuple):
    """One clip of the stream.

    epoch counts the visits of its pool; sample is a row of the table; start_frame counts from the sample's first
    frame; clip_id is a 63-bit hash of (sample key, start frame): the same in every run, whatever else the corpus holds.
    """

    epoch: int
    sample: int
    start_frame: int
    clip_id: int


class Clips(NamedTuple):
    """Several clips: the fields of `Clip` as int64 [n]."""

    epoch: np.ndarray
    sample: np.ndarray
    start_frame: np.ndarray
    clip_id: np.ndarray


@dataclass(frozen=True)
class Order:
    """Settings that, with the index, decide the order; what a checkpoint must agree with.

    Attributes
    ----------
    num_frames
        T, frames of a clip.
    lanes, block
        Locality of the shuffle, in lanes and clips (see pool.py).
    min_jitter
        Least range in frames of the clip boundaries.
    """

    num_frames: int
    seed: int
    lanes: int = 1
    block: int = 0
    min_jitter: int = 0


class Plan:
    """The stream of clips.

    Parameters
    ----------
    table
        Samples to draw from.
    order
        Settings.
    weights, temperature
        Shares of the datasets (see mixing.shares_of); without weights and at temperature 1 all samples form one pool.
    """

    def __init__(
        self, table: SampleTable, order: Order, weights: Mapping[str, float] | None = None, temperature: float = 1.0
    ) -> None:
        self.order = order
        names = table.datasets
        clips = clips_per_sample(table.n_frames, order.num_frames, order.min_jitter)
        sizes = np.bincount(table.dataset, clips, len(names)).astype(np.int64)
        shares = shares_of(names, sizes.tolist(), weights or {}, temperature)
        self.names = ["+".join(names)] if shares is None else [n for n, s in zip(names, shares, strict=True) if s > 0]
        self.pools = [self._pool(table, None if shares is None else names.index(name)) for name in self.names]
        self.mixture: Mixture | None = None
        if shares is not None:
            counts = block_counts(self.names, shares[shares > 0])
            self.mixture = Mixture(counts, key_of(order.seed, MIXING))
        self._corpus_ids = table.corpus_ids
        self._split_hash = hashlib.sha256(table.key_hash.tobytes()).hexdigest()

    def _pool(self, table: SampleTable, dataset: int | None) -> Pool:
        rows = np.arange(len(table)) if dataset is None else np.flatnonzero(table.dataset == dataset)
        order = self.order
        return Pool(
            rows,
            table.shard[rows],
            table.n_frames[rows],
            table.key_hash[rows],
            order.num_frames,
            order.min_jitter,
            order.lanes,
            order.block,
            key_of(order.seed, ORDER),
        )

    def clip(self, k: int) -> Clip:
        """Return the clip at position k."""
        pool, count = (0, k) if self.mixture is None else self.mixture.place_one(k)
        epoch, place = divmod(count, self.pools[pool].num_clips)
        return Clip(epoch, *self.pools[pool].locate_one(epoch, place))

    def clips(self, positions: np.ndarray) -> Clips:
        """Return `clip` of every position: int64 [n]; about 1 us a clip for a few hundred at a time."""
        positions = np.asarray(positions, np.int64)
        if self.mixture is None:
            return self._of_pool(0, positions)
        pool, count = self.mixture.place(positions)
        made = Clips(*(np.empty(positions.shape, np.int64) for _ in Clips._fields))
        for number in np.unique(pool).tolist():
            chosen = pool == number
            for whole, part in zip(made, self._of_pool(number, count[chosen]), strict=True):
                whole[chosen] = part
        return made

    def _of_pool(self, pool: int, count: np.ndarray) -> Clips:
        epoch, place = np.divmod(count, self.pools[pool].num_clips)
        return Clips(epoch, *self.pools[pool].locate(epoch, place))

    def pool_of(self, k: int) -> int:
        """Return the number of the pool that position k draws from."""
        return 0 if self.mixture is None else self.mixture.place_one(k)[0]

    def substitute(self, k: int, attempt: int) -> Clip:
        """Return the clip that stands in for an unreadable one at position k: another of the same pool and epoch."""
        pool, count = (0, k) if self.mixture is None else self.mixture.place_one(k)
        size = self.pools[pool].num_clips
        if size == 1:
            raise DataError("the only clip of its dataset cannot be read; nothing can stand in for it")
        epoch, place = divmod(count, size)
        other = (place + 1 + (key_of(self.order.seed, k) + attempt) % (size - 1)) % size
        return Clip(epoch, *self.pools[pool].locate_one(epoch, other))

    @property
    def mixing_id(self) -> str:
        """Hash of what is mixed and in which shares."""
        counts = None if self.mixture is None else self.mixture.counts.tolist()
        return _digest([self.names, [pool.num_clips for pool in self.pools], counts])

    def identity(self) -> dict[str, Any]:
        """Return what decides the order, by name; equal for two plans exactly when they give the same stream."""
        order = self.order
        return {
            "plan_version": VERSION,
            "corpus_id": "+".join(self._corpus_ids),
            "samples_id": self._split_hash,
            "mixing_id": self.mixing_id,
            "seed": order.seed,
            "num_frames": order.num_frames,
            "lanes": order.lanes,
            "block": order.block,
            "min_jitter": order.min_jitter,
        }

    def hash(self) -> str:
        """Return a hash of the identity and of the first clips, for ranks and runs to compare."""
        first = self.clips(np.arange(64, dtype=np.int64))
        return _digest([self.identity(), [column.tolist() for column in first]])

    def report(self) -> list[dict[str, Any]]:
        """Return for each pool what an epoch visits: clips, frames, frames never in a clip, share of the stream."""
        rows = []
        for number, (name, pool) in enumerate(zip(self.names, self.pools, strict=True)):
            share = (
                1.0 if self.mixture is None else float(self.mixture.counts[number]) / float(self.mixture.counts.sum())
            )
            rows.append(
                {
                    "dataset": name,
                    "samples": int(pool.rows.size),
                    "samples_too_short": pool.num_short,
                    "clips_per_epoch": pool.num_clips,
                    "frames_per_epoch": pool.num_clips * self.order.num_frames,
                    "share": share,
                }
            )
        return rows


def share(first: int, batch: int, rank: int, world_size: int, turns: range) -> np.ndarray:
    """Return the positions of one rank's micro-batches, int64 [turns, batch].

    Turn m of all ranks together is the m-th run of batch * world_size positions from `first`; a rank has its part of
    each. Reader or loader workers take turns, so any number of them, and of ranks, gives one order.
    """
    begins = first + (np.asarray(turns, np.int64) * world_size + rank) * batch
    return begins[:, None] + np.arange(batch)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
