"""Clips of a corpus, in an order that is a function of the position alone, as batches of int8 codes.

Read in this order: plan.py (which clip comes when), reading.py (a clip, proved right), stream.py (a rank's batches),
decoding.py (codes to volume). Names below are imported when they are asked for, since reader processes need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmri_scale.data.batch import ClipBatch as ClipBatch
    from fmri_scale.data.decoding import affine as affine
    from fmri_scale.data.decoding import decode as decode
    from fmri_scale.data.decoding import reduced_mask as reduced_mask
    from fmri_scale.data.plan import Order as Order
    from fmri_scale.data.plan import Plan as Plan
    from fmri_scale.data.stream import ClipStream as ClipStream
    from fmri_scale.data.table import sample_table as sample_table
    from fmri_scale.data.validation import validation_clips as validation_clips

HOMES = {
    "ClipBatch": "batch",
    "ClipStream": "stream",
    "Order": "plan",
    "Plan": "plan",
    "affine": "decoding",
    "decode": "decoding",
    "reduced_mask": "decoding",
    "sample_table": "table",
    "validation_clips": "validation",
}
"Public names and the files they live in."

__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
