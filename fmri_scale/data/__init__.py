"""Clips of a corpus, in an order that is a function of the position alone, as batches of int8 codes.

Read in this order: plan.py (which clip comes when), reading.py (a clip, proved right), stream.py (a rank's batches),
decoding.py (codes to volume). Names below are imported when they are asked for, since reader processes need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmri_scale.data.agreement import check_ranks as check_ranks
    from fmri_scale.data.augmentation import augment as augment
    from fmri_scale.data.augmentation import moved_labels as moved_labels
    from fmri_scale.data.augmentation import region_counts as region_counts
    from fmri_scale.data.batch import ClipBatch as ClipBatch
    from fmri_scale.data.corpora import open_corpora as open_corpora
    from fmri_scale.data.corpora import preflight as preflight
    from fmri_scale.data.decoding import affine as affine
    from fmri_scale.data.decoding import decode as decode
    from fmri_scale.data.decoding import reduced_mask as reduced_mask
    from fmri_scale.data.plan import Order as Order
    from fmri_scale.data.plan import Plan as Plan
    from fmri_scale.data.stream import ClipStream as ClipStream
    from fmri_scale.data.table import sample_table as sample_table
    from fmri_scale.data.validation import validation_clips as validation_clips
    from fmri_scale.data.validation import weighted_mean as weighted_mean
    from fmri_scale.data.wds import PlanSource as PlanSource
    from fmri_scale.data.wds import ShardSource as ShardSource

HOMES = {
    "ClipBatch": "batch",
    "ClipStream": "stream",
    "Order": "plan",
    "Plan": "plan",
    "PlanSource": "wds",
    "ShardSource": "wds",
    "affine": "decoding",
    "augment": "augmentation",
    "check_ranks": "agreement",
    "decode": "decoding",
    "moved_labels": "augmentation",
    "open_corpora": "corpora",
    "preflight": "corpora",
    "reduced_mask": "decoding",
    "region_counts": "augmentation",
    "sample_table": "table",
    "validation_clips": "validation",
    "weighted_mean": "validation",
}
"Public names and the files they live in."

__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
