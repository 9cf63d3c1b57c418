"""Fixed clips for validation: the same ones, in the same batches, at every evaluation and for any number of ranks.

Batches are cut from one list and dealt to ranks in turn. Where the last round has too few, a rank gets the first batch
again with `valid` all False: it takes part in collective operations and counts for nothing. With losses weighted by
the number of valid clips, `weighted_mean` over ranks is therefore the mean over exactly the clips of the list.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist

from fmri_scale.config import DataConfig
from fmri_scale.data.assemble import assemble
from fmri_scale.data.batch import ClipBatch
from fmri_scale.data.corpora import source_spec
from fmri_scale.data.plan import Clips
from fmri_scale.data.pool import clip_ids, clips_per_sample
from fmri_scale.data.reading import ClipReader, ReadFault
from fmri_scale.data.request import SlotLayout
from fmri_scale.data.sources import make_source
from fmri_scale.data.table import SampleTable, sample_table
from fmri_scale.errors import DataError
from sharding.corpus import Corpus
from sharding.format import NPY_HEADER_BYTES


def fixed_clips(table: SampleTable, num_frames: int, num_clips: int) -> Clips:
    """Return up to `num_clips` clips spread evenly over the table (0: all), from the middle phase of each sample."""
    counts = clips_per_sample(table.n_frames, num_frames, 0)
    total = int(counts.sum())
    if total == 0:
        raise DataError(f"no validation sample has {num_frames} frames; build longer segments or choose a shorter clip")
    wanted = min(num_clips or total, total)
    chosen = np.arange(wanted, dtype=np.int64) * total // wanted
    first = np.concatenate([[0], np.cumsum(counts)])
    rows = np.searchsorted(first, chosen, side="right") - 1
    phase = (table.n_frames[rows] - counts[rows] * num_frames) // 2
    start = phase + (chosen - first[rows]) * num_frames
    return Clips(np.zeros_like(chosen), rows, start, clip_ids(table.key_hash[rows], start))


def validation_clips(
    corpus: Corpus | Sequence[Corpus],
    config: DataConfig,
    num_frames: int,
    micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
    num_clips: int = 0,
    split: str = "val",
) -> Iterator[ClipBatch]:
    """Yield this rank's validation batches; every rank gets equally many.

    Parameters
    ----------
    corpus, config, num_frames, micro_batch, rank, world_size
        As for ClipStream.
    num_clips
        Clips of the whole validation, over all ranks; 0 takes all.
    split
        Split to take them from.

    Raises
    ------
    DataError
        The split has no clip, or a clip cannot be read: a mean over other clips would not be comparable.
    """
    corpora = [corpus] if isinstance(corpus, Corpus) else list(corpus)
    table = sample_table(corpora, split)
    clips = fixed_clips(table, num_frames, num_clips)
    layout = SlotLayout(micro_batch, num_frames, table.num_voxels, config.normalisation == "voxel_z", NPY_HEADER_BYTES)
    reader = ClipReader(make_source(source_spec(corpora, table, config)), layout, config.verify, config.retries)
    num_batches = -(-len(clips.sample) // micro_batch)
    try:
        for turn in range(-(-num_batches // world_size)):
            number = turn * world_size + rank
            valid = number < num_batches
            begin = number * micro_batch if valid else 0
            positions = np.arange(begin, min(begin + micro_batch, len(clips.sample)), dtype=np.int64)
            batch = _read(reader, table, positions, Clips(*(column[positions] for column in clips)))
            batch.valid.fill_(valid)
            yield batch
    finally:
        reader.source.close()


def _read(reader: ClipReader, table: SampleTable, positions: np.ndarray, clips: Clips) -> ClipBatch:
    views = reader.layout.views(np.empty(reader.layout.slot_bytes, np.uint8), len(positions))
    for place, request in enumerate(table.requests(clips.sample, clips.start_frame)):
        try:
            reader.read(request, views, place)
        except ReadFault as fault:
            raise DataError(f"validation, {table.where(request.row)}: {fault}; restore the shard") from fault
    return assemble(table, positions, clips, views)


def weighted_mean(total: float, count: float, device: torch.device | str = "cpu") -> float:
    """Return the mean over all ranks of a metric whose sum over `count` valid clips of this rank is `total`."""
    both = torch.tensor([total, count], dtype=torch.float64, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(both)
    return float(both[0] / both[1])
