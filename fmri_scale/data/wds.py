"""webdataset around the loader: our order and our checks as its source stages, so that users add stages of their own.

`PlanSource` gives the clips of the plan, each proved right, to `wds.DataPipeline`, in the order of one process with any
number of `wds.WebLoader` workers. `ShardSource` walks whole shards in the order of their names, for programs that want
every sample once. Both give {"__key__", "__url__", "bold.npy", "scale.npy", "stats.npy", "json"} with arrays and a
dict as values. webdataset's own decoders are not used: they run pickled code that a tar may hold; nor are its
shuffles, splitters and cache.

    pipeline = wds.DataPipeline(PlanSource(corpora, config.data, 20, batch=4), my_stage, wds.batched(4, partial=False))
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=2)
"""

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data
import xxhash

from fmri_scale.config import DataConfig
from fmri_scale.data.corpora import source_spec
from fmri_scale.data.plan import Order, Plan, share
from fmri_scale.data.reading import ClipReader, ReadFault
from fmri_scale.data.request import SlotLayout
from fmri_scale.data.sources import make_source
from fmri_scale.data.table import sample_table
from fmri_scale.data.tar import TarError, walk
from fmri_scale.errors import DataError
from sharding.corpus import Corpus
from sharding.format import (
    BOLD_SUFFIX,
    FRAME_HASH_SUFFIX,
    JSON_SUFFIX,
    NPY_HEADER_BYTES,
    SCALE_SUFFIX,
    STATS_SUFFIX,
    SUFFIXES,
)

DTYPES = {BOLD_SUFFIX: "|i1", FRAME_HASH_SUFFIX: "<u8", SCALE_SUFFIX: "<f2", STATS_SUFFIX: "<f2"}
"What a member may be an array of."

CHUNK = 1 << 18


class PlanSource(torch.utils.data.IterableDataset):
    """Source stage: the clips of the plan from a position on, without end; one that cannot be read ends it by name.

    Parameters
    ----------
    corpora, config, num_frames, seed, position, rank, world_size
        As for ClipStream.
    batch
        Clips that one rank takes at a time: workers take turns by batches, so follow with wds.batched(batch).
    """

    def __init__(
        self,
        corpora: Corpus | Sequence[Corpus],
        config: DataConfig,
        num_frames: int,
        batch: int,
        seed: int = 0,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.corpora = [corpora] if isinstance(corpora, Corpus) else list(corpora)
        self.config, self.batch, self.position, self.rank, self.world_size = config, batch, position, rank, world_size
        self.table = sample_table(self.corpora, config.split)
        order = Order(num_frames, seed, config.lanes, config.shuffle_block, config.min_jitter)
        self.plan = Plan(self.table, order, config.weights, config.temperature)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = torch.utils.data.get_worker_info()
        return self.turns(info.id, info.num_workers) if info else self.turns(0, 1)

    def turns(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        """Yield the clips of every `workers`-th micro-batch, beginning with number `worker`."""
        with_stats = self.config.normalisation == "voxel_z"
        frames = self.plan.order.num_frames
        layout = SlotLayout(self.batch, frames, self.table.num_voxels, with_stats, NPY_HEADER_BYTES)
        spec = source_spec(self.corpora, self.table, self.config)
        reader = ClipReader(make_source(spec), layout, self.config.verify, self.config.retries)
        try:
            for turn in itertools.count(worker, workers):
                turns = range(turn, turn + 1)
                yield from self._read(reader, share(self.position, self.batch, self.rank, self.world_size, turns)[0])
        finally:
            reader.source.close()

    def _read(self, reader: ClipReader, positions: np.ndarray) -> Iterator[dict[str, Any]]:
        clips = self.plan.clips(positions)
        views = reader.layout.views(np.empty(reader.layout.slot_bytes, np.uint8), self.batch)
        for place, request in enumerate(self.table.requests(clips.sample, clips.start_frame)):
            try:
                reader.read(request, views, place)
            except ReadFault as fault:
                raise DataError(f"{self.table.where(request.row)}: {fault}; restore the shard") from fault
            row = request.row
            facts = {name: float(self.table.columns[name][row]) for name in ("unit", "mean", "sd", "background")}
            whole = {name: int(getattr(clips, name)[place]) for name in ("epoch", "start_frame", "clip_id")}
            sample = {
                "__key__": f"{self.table.key(row)}_{request.start_frame:03d}",
                "__url__": self.table.shards[request.shard].name,
                BOLD_SUFFIX[1:]: views.codes[place],
                SCALE_SUFFIX[1:]: views.scale[place],
                JSON_SUFFIX[1:]: {**facts, **whole, "position": int(positions[place]), "key": self.table.key(row)},
            }
            if views.stats is not None:
                sample[STATS_SUFFIX[1:]] = views.stats[place]
            yield sample


class ShardSource(torch.utils.data.IterableDataset):
    """Source stage: every sample of shard files, whole, in the order given; workers take shards in turn."""

    def __init__(self, shards: Sequence[str | Path]) -> None:
        self.shards = [Path(shard) for shard in shards]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = torch.utils.data.get_worker_info()
        for shard in self.shards[info.id :: info.num_workers] if info else self.shards:
            yield from samples_of(shard)


def samples_of(shard: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard, decoded; DataError where it is not a plain shard (see tar.py)."""
    members: dict[str, Any] = {}
    try:
        with shard.open("rb") as file:
            for member in walk(iter(lambda: file.read(CHUNK), b"")):
                if members and members["__key__"] != member.key:
                    yield _whole(members)
                    members = {}
                members |= {"__key__": member.key, "__url__": str(shard)}
                if member.suffix[1:] in members:
                    raise TarError(f"byte {member.offset}: {member.key}{member.suffix} comes twice")
                members[member.suffix[1:]] = decode_member(member.suffix, member.data)
        if members:
            yield _whole(members)
    except TarError as error:
        raise DataError(f"{shard}: {error}; it is not a shard made by fmri-shards, or it is damaged") from error
    except OSError as error:
        raise DataError(f"{shard}: {error.strerror}") from error


def decode_member(suffix: str, data: bytes | bytearray) -> Any:
    """Return a member's content: an array of the one type that its suffix may have, or a dict; else TarError."""
    if suffix == JSON_SUFFIX:
        try:
            content = json.loads(data)
        except ValueError as error:
            raise TarError(f"a {suffix} member is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise TarError(f"a {suffix} member is not a JSON object")
        return content
    if suffix not in DTYPES:
        raise TarError(f"no member has the suffix {suffix!r}")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"format {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, SyntaxError) as error:
        raise TarError(f"a {suffix} member is not an array: {error}") from error
    expected = np.dtype(DTYPES[suffix])
    if dtype != expected or fortran:
        raise TarError(f"a {suffix} member holds {dtype}, expected {expected} in C order")
    begin = file.tell()
    if min(shape, default=0) < 0 or begin + expected.itemsize * int(np.prod(shape, dtype=object)) != len(data):
        raise TarError(f"a {suffix} member of {len(data)} bytes says its shape is {shape}")
    return np.frombuffer(data, expected, offset=begin).reshape(shape)


def _whole(members: dict[str, Any]) -> dict[str, Any]:
    absent = [suffix for suffix in SUFFIXES if suffix[1:] not in members]
    if absent:
        raise TarError(f"sample {members['__key__']} has no {', '.join(absent)}")
    codes, written = members[BOLD_SUFFIX[1:]], members[FRAME_HASH_SUFFIX[1:]]
    if [xxhash.xxh3_64_intdigest(frame.data) for frame in codes] != written.tolist():
        raise TarError(f"sample {members['__key__']}: the checksum of a frame is not the one written with it")
    return members
