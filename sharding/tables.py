"""The columns of a corpus' two tables, as arrow schemas. Part of the contract in `format`, which gives them by name."""

import pyarrow as pa

from sharding.format import MEMBER_COLUMNS

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        *[(f"{stem}_{part}", pa.int64()) for stem in MEMBER_COLUMNS.values() for part in ("offset", "bytes")],
        ("start_frame", pa.int64()),
        ("n_frames", pa.int64()),
        *[(name, pa.string()) for name in ("dataset", "subject", "session", "run", "task", "split", "family")],
        *[(name, pa.float64()) for name in ("tr", "unit", "mean", "sd", "background")],
        *[(f"{stem}_xxh3", pa.uint64()) for stem in MEMBER_COLUMNS.values()],
    ]
)
"""A row per sample. Offsets are of a member's payload (npy header included) from the start of the shard, in bytes;
start_frame counts from the run's first frame; tr in s; mean, sd and background as in prepare.py; text is "" if absent.
"""

RUNS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("source_bytes", pa.int64()),
        ("source_mtime_ns", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("shard", pa.string()),
        *[
            (name, pa.string())
            for name in ("dataset", "subject", "session", "run", "task", "variant", "split", "family")
        ],
        ("source_shape", pa.string()),
        ("source_orientation", pa.string()),
        ("source_voxel_mm", pa.string()),
        ("source_dtype", pa.string()),
        ("source_frames", pa.int64()),
        ("source_tr", pa.float64()),
        ("tr_from", pa.string()),
        ("space", pa.string()),
        ("geometry", pa.string()),
        ("frames", pa.int64()),
        ("tr", pa.float64()),
        *[
            (name, pa.float64())
            for name in (
                "mean",
                "sd",
                "background",
                "brain_covered",
                "head_in_mask",
                "outside_fov",
                "tsnr_median",
                "dvars_median",
                "clipped_fraction",
                "negative_fraction",
                "constant_fraction",
            )
        ],
        ("nonfinite_values", pa.int64()),
        ("zero_frames", pa.int64()),
        ("int8_corr_median", pa.float64()),
        ("int8_corr_p5", pa.float64()),
        ("mean_fd", pa.float64()),
        ("fd_from", pa.string()),
        ("mask_dice", pa.float64()),
        ("header_tr", pa.float64()),
        ("scrubbed_frames", pa.int64()),
    ]
)
"""A row per input. status is ok, failed or skipped, with the reason; frames are those stored, source_frames those read;
geometry is exact (cropped and padded), resampled or legacy; fractions are of stored voxels or values. int8_corr is the
temporal correlation of brain voxels with what their codes decode to; mean_fd is in mm, fd_from names its source;
mask_dice is of the run's own brain mask with MNI's; header_tr is what the header says, in s, whatever was used.
"""
