"""The corpus contract: the canonical grid, the members of a sample, the index columns, the schema version.

Everything that writes or reads a corpus takes these facts from here. A corpus is a folder:

    corpus.json     what is in it: totals, settings, checksums of shards, of these files and of itself; written last,
                    so it marks a whole corpus
    mask.nii.gz     which voxels of the grid are stored, V of them in C order
    index.parquet   a row per sample, sorted by (shard, key): INDEX_SCHEMA
    runs.parquet    a row per input file, with its source, quality figures, and why it failed: RUNS_SCHEMA
    shards/         plain WebDataset tars, {dataset}-{000000}.tar

A sample is a segment of up to SEGMENT_FRAMES consecutive frames of one run; its members are KEY + a SUFFIX below.
Nothing here reads or writes a file.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sharding.tables import INDEX_SCHEMA as INDEX_SCHEMA
    from sharding.tables import RUNS_SCHEMA as RUNS_SCHEMA

SCHEMA_VERSION = 1
"Version of this contract; a reader refuses a corpus with a higher one."

GRID_SHAPE = (96, 96, 96)
"Voxels of the canonical grid along x (left to right), y (back to front), z (bottom to top)."

GRID_AFFINE = np.array(
    [[2.0, 0.0, 0.0, -96.0], [0.0, 2.0, 0.0, -114.0], [0.0, 0.0, 2.0, -78.0], [0.0, 0.0, 0.0, 1.0]], dtype=np.float64
)
"Voxel (i, j, k) of the grid to mm in MNI152 (RAS)."
GRID_AFFINE.setflags(write=False)

MIN_LABELLED = 0.25
"A patch can be hidden by region masks where at least this share of its voxels carries a label of the atlas."

SEGMENT_FRAMES = 128
"Most frames of a sample."

NPY_HEADER_BYTES = 128
"Bytes before the data of every .npy member, so that frame t of a sample starts at offset + 128 + t * V."

BOLD_SUFFIX = ".bold.npy"
"int8 (n_frames, V), C order: the codes q of x = unit * (offset + step * q)."
FRAME_HASH_SUFFIX = ".frame_xxh3.npy"
"uint64 (n_frames,): xxh3_64 of the V bytes of each frame, so that a part of a sample can be verified."
SCALE_SUFFIX = ".scale.npy"
"float16 (2, V): offset and step of each voxel, in multiples of the run's unit."
STATS_SUFFIX = ".stats.npy"
"float16 (2, V): (offset * unit - temporal mean) / sd (0 where sd is 0), and sd / unit, of each voxel."
JSON_SUFFIX = ".json"
"Entities, timing and statistics of the sample; nothing that depends on how the source file was stored."

SUFFIXES = (BOLD_SUFFIX, FRAME_HASH_SUFFIX, JSON_SUFFIX, SCALE_SUFFIX, STATS_SUFFIX)
"All members of a sample in the order in which they stand in the tar."

MEMBER_COLUMNS = {
    BOLD_SUFFIX: "bold",
    FRAME_HASH_SUFFIX: "frame_xxh3",
    JSON_SUFFIX: "json",
    SCALE_SUFFIX: "scale",
    STATS_SUFFIX: "stats",
}
"Suffix to the stem of its index columns: {stem}_offset, {stem}_bytes, {stem}_xxh3."

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,85}")
"A key has no dot (webdataset splits there) and fits, with the longest suffix, the 100 characters of a USTAR name."

DATASET_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,40}")
"A dataset's name, as it stands in shard names and keys."

SPLITS = ("train", "val", "test")


def __getattr__(name: str) -> Any:
    """INDEX_SCHEMA and RUNS_SCHEMA when they are asked for: feature extraction needs the grid but no pyarrow."""
    if name in ("INDEX_SCHEMA", "RUNS_SCHEMA"):
        from sharding import tables

        return getattr(tables, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def num_codes_bytes(n_frames: int, num_voxels: int) -> int:
    """Bytes of a sample's bold member: header and n_frames rows of num_voxels codes."""
    return NPY_HEADER_BYTES + n_frames * num_voxels


def is_key(text: str) -> bool:
    """True where `text` can be the key of a sample."""
    return KEY_PATTERN.fullmatch(text) is not None
