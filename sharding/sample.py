"""A prepared run as samples: keys, members, and the facts an index row needs.

In: a `PreparedRun` and who it is of. Out: per segment of up to SEGMENT_FRAMES frames a `Sample`. The JSON member holds
only what is the same however the source file was stored, so that copies in LAS and RAS give the same bytes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from sharding.discover import RunSource
from sharding.format import (
    BOLD_SUFFIX,
    FRAME_HASH_SUFFIX,
    JSON_SUFFIX,
    MEMBER_COLUMNS,
    SCALE_SUFFIX,
    SEGMENT_FRAMES,
    STATS_SUFFIX,
)
from sharding.keys import sample_key
from sharding.prepare import PreparedRun
from sharding.write import Buffer, npy_bytes, npy_empty


@dataclass(frozen=True)
class Sample:
    """A segment of a run, ready to be written."""

    key: str
    members: dict[str, Buffer]
    facts: dict[str, Any]
    "Index columns that do not depend on the sample's place in the shard."


def samples_of(run: PreparedRun, source: RunSource, split: str) -> Iterator[Sample]:
    """Cut a run into samples, in the order of time, each good until the next: they share memory."""
    bold = None
    for start in range(0, run.num_frames, SEGMENT_FRAMES):
        stop = min(start + SEGMENT_FRAMES, run.num_frames)
        key = sample_key(source, start)
        facts = _facts(run, source, split, key, start, stop - start)
        bold, codes = npy_empty((stop - start, run.store.num_voxels), np.dtype(np.int8), within=bold)
        run.segment(start, stop, codes)
        hashes = np.array([xxhash.xxh3_64_intdigest(frame.data) for frame in codes], dtype=np.uint64)
        members: dict[str, Buffer] = {
            BOLD_SUFFIX: bold,
            FRAME_HASH_SUFFIX: npy_bytes(hashes),
            JSON_SUFFIX: _json(run, source, facts),
            SCALE_SUFFIX: npy_bytes(run.scale),
            STATS_SUFFIX: npy_bytes(run.stats),
        }
        digests = {f"{MEMBER_COLUMNS[suffix]}_xxh3": xxhash.xxh3_64_intdigest(data) for suffix, data in members.items()}
        yield Sample(key, members, {**facts, **digests})


def _facts(run: PreparedRun, source: RunSource, split: str, key: str, start: int, n_frames: int) -> dict[str, Any]:
    return {
        "key": key,
        "dataset": source.dataset,
        "subject": source.subject,
        "session": source.session,
        "run": source.run,
        "task": source.task,
        "split": split,
        "family": source.family,
        "start_frame": start,
        "n_frames": n_frames,
        "tr": run.tr,
        "unit": run.unit,
        "mean": run.mean,
        "sd": run.sd,
        "background": run.background,
    }


def _json(run: PreparedRun, source: RunSource, facts: dict[str, Any]) -> bytes:
    more = {
        "variant": source.variant,
        "run_frames": run.num_frames,
        "source_tr": run.source_tr,
        "source_frames": run.info.num_frames,
        "resampled_in_space": run.geometry != "exact",
        "negatives_clipped": run.clip_negatives,
    }
    return json.dumps({**facts, **more}, sort_keys=True, separators=(",", ":")).encode()
