"""The order of the clips of one pool of samples: which clip stands at place j of epoch e, without a list of clips.

A sample of n frames gives `count` clips of T frames that follow each other without gap or overlap, from a phase drawn
anew for every sample and epoch in [0, n - count * T]; every epoch has every clip number of every sample once. The
order is a permutation: the pool's shards are shuffled and laid end to end, this line is cut into `lanes` of equal
length (place j is in lane j mod lanes), and inside a lane blocks of `block` clips are shuffled. One lane and one block
shuffle everything with everything; more lanes and smaller blocks keep each reader within few shards at a time.

Everything is computed from (seed, epoch, place): no state, O(log samples) per clip, 24 bytes per sample.
"""

from bisect import bisect_right

import numpy as np

from fmri_scale.data.keyed import fold, kept_fold, permutation, permute, permute_one
from fmri_scale.errors import DataError

EPOCHS_KEPT = 4
"Shard orders kept: a reader at an epoch's end looks into the next one."

BLOCK_BITS = 40
"A block's key is drawn from lane << BLOCK_BITS | number of the block in the lane."

SHARDS = (1 << 64) - 1
"Separates the random numbers of the order of shards from those of blocks and samples."


def clips_per_sample(n_frames: np.ndarray, num_frames: int, min_jitter: int) -> np.ndarray:
    """Return int64 [samples]: the clips each sample gives per epoch.

    As many as fit, or as fit beside `min_jitter` frames by which their boundaries can move; at least one where the
    sample is as long as a clip.
    """
    n = n_frames.astype(np.int64)
    return np.maximum((n - min_jitter) // num_frames, (n >= num_frames).astype(np.int64))


def clip_ids(key_hash: np.ndarray, start_frames: np.ndarray) -> np.ndarray:
    """Return clip ids, int64 [n]: 63-bit hashes of samples' key hashes, uint64 [n], and first frames, int64 [n]."""
    return (fold(key_hash, start_frames.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)


class Pool:
    """Samples that are visited together, each clip once per epoch.

    Parameters
    ----------
    rows
        int [samples]: their rows in the sample table, grouped by shard.
    shard, n_frames, key_hash
        [samples] of those rows, as in the sample table.
    num_frames
        T, frames of a clip.
    min_jitter
        Least range in frames over which a sample's clip boundaries move from epoch to epoch.
    lanes, block
        See above; block 0 is a whole lane.
    key
        Decides the order, with the epoch.
    """

    def __init__(
        self,
        rows: np.ndarray,
        shard: np.ndarray,
        n_frames: np.ndarray,
        key_hash: np.ndarray,
        num_frames: int,
        min_jitter: int = 0,
        lanes: int = 1,
        block: int = 0,
        key: int = 0,
    ) -> None:
        counts = clips_per_sample(n_frames, num_frames, min_jitter)
        used = counts > 0
        self.rows = rows[used].astype(np.int32)
        self.num_frames, self.lanes, self.block, self.key = num_frames, lanes, block, key
        self.num_short = int((~used).sum())
        self._counts = counts[used]
        self._range = (n_frames[used] - self._counts * num_frames + 1).astype(np.int64)
        self._key_hash = key_hash[used]
        self._first = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        self.num_clips = int(self._first[-1])
        if self.num_clips == 0:
            raise DataError(f"no sample has {num_frames} frames; choose a shorter clip or build longer segments")
        begins = np.flatnonzero(np.diff(shard[used], prepend=-1))
        self._shard_first = np.append(self._first[begins], self.num_clips)
        self._lane_length, self._lane_extra = divmod(self.num_clips, lanes)
        self._orders: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def locate_one(self, epoch: int, place: int) -> tuple[int, int, int]:
        """Return (row, start frame, clip id) of place `place` of an epoch."""
        position, lane = divmod(place, self.lanes)
        length = self._lane_length + (lane < self._lane_extra)
        block = self.block or length
        number, inside = divmod(position, block)
        size = min(block, length - number * block)
        epoch_key, order, begins = self._orders.get(epoch) or self._order_of(epoch)
        line = lane * self._lane_length + min(lane, self._lane_extra) + number * block
        line += permute_one(kept_fold(epoch_key, lane << BLOCK_BITS | number), size, inside)
        at = bisect_right(begins.data, line) - 1
        clip = line - begins.data[at] + self._shard_first.data[order.data[at]]
        sample = bisect_right(self._first.data, clip) - 1
        key_hash = self._key_hash.data[sample]
        phase = fold(epoch_key, key_hash) % self._range.data[sample]
        start = phase + (clip - self._first.data[sample]) * self.num_frames
        return self.rows.data[sample], start, fold(key_hash, start) >> 1

    def locate(self, epochs: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `locate_one` of every (epoch, place): int64 [n] in; rows, start frames and clip ids int64 [n] out."""
        lane, position = places % self.lanes, places // self.lanes
        length = self._lane_length + (lane < self._lane_extra)
        block = np.where(self.block, self.block, length)
        number, inside = position // block, position % block
        size = np.minimum(block, length - number * block)
        epoch_key = fold(self.key, epochs.astype(np.uint64))
        key = fold(epoch_key, (lane << BLOCK_BITS | number).astype(np.uint64))
        line = lane * self._lane_length + np.minimum(lane, self._lane_extra) + number * block
        line = line + permute(key, size, inside)
        clip = self._from_line(epochs, line)
        sample = np.searchsorted(self._first, clip, side="right") - 1
        key_hash = self._key_hash[sample]
        phase = (fold(epoch_key, key_hash) % self._range[sample].astype(np.uint64)).astype(np.int64)
        start = phase + (clip - self._first[sample]) * self.num_frames
        return self.rows[sample].astype(np.int64), start, clip_ids(key_hash, start)

    def _from_line(self, epochs: np.ndarray, line: np.ndarray) -> np.ndarray:
        """Return the clips (numbered sample by sample) that stand at places of the line of shuffled shards."""
        clip = np.empty_like(line)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            _, order, begins = self._orders.get(epoch) or self._order_of(epoch)
            at = np.searchsorted(begins, line[chosen], side="right") - 1
            clip[chosen] = line[chosen] - begins[at] + self._shard_first[order[at]]
        return clip

    def _order_of(self, epoch: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Return and keep an epoch's key, its order of shards, and the place of each one's first clip on the line."""
        key = fold(self.key, epoch)
        order = permutation(fold(key, SHARDS), self._shard_first.size - 1)
        ends = np.cumsum(np.diff(self._shard_first)[order])
        if len(self._orders) >= EPOCHS_KEPT:
            del self._orders[next(iter(self._orders))]
        self._orders[epoch] = (key, order, np.concatenate([[0], ends[:-1]]).astype(np.int64))
        return self._orders[epoch]
