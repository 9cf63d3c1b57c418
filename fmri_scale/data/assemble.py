"""Put a read slot and the facts of its clips together into a batch of tensors."""

import numpy as np
import torch

from fmri_scale.data.batch import ClipBatch
from fmri_scale.data.plan import Clips
from fmri_scale.data.request import SlotViews
from fmri_scale.data.ring import Loan
from fmri_scale.data.table import SampleTable


def assemble(
    table: SampleTable, positions: np.ndarray, clips: Clips, views: SlotViews, loan: Loan | None = None
) -> ClipBatch:
    """Return the batch of `clips` at `positions`, int64 [B], whose codes and planes are in `views` (not copied)."""
    rows = clips.sample
    facts = {name: torch.from_numpy(table.columns[name][rows]) for name in ("unit", "mean", "sd", "background")}
    return ClipBatch(
        codes=torch.from_numpy(views.codes),
        scale=torch.from_numpy(views.scale),
        stats=None if views.stats is None else torch.from_numpy(views.stats),
        clip_id=torch.from_numpy(clips.clip_id),
        epoch=torch.from_numpy(clips.epoch),
        position=torch.from_numpy(positions),
        start_frame=torch.from_numpy(clips.start_frame),
        keys=[table.key(row) for row in rows],
        valid=torch.ones(len(rows), dtype=torch.bool),
        loan=loan,
        **facts,
    )
