"""Where brain and atlas regions lie on a model's token grid: what anatomical masks are drawn from.

Plain tensors, made once by whoever has the atlas; nothing here reads a file. Shape suffixes: R regions (or groups of
them), M positions of a frame in C order.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Anatomy(NamedTuple):
    """Occupancy of the positions of a frame.

    Attributes
    ----------
    regions : int64 `[R, M]`, voxels of the canonical grid that each region fills in the patch at each position.
    drawable : bool `[R]`, regions that may be drawn; the others still count as what a patch holds. None: all.
    group : int64 `[R]`, number of the group each region belongs to, -1 for none. None: there are no groups.
    brain : `[M]`, brain voxels in the patch at each position; only whether there are any is used.
    """

    regions: Tensor | None = None
    drawable: Tensor | None = None
    group: Tensor | None = None
    brain: Tensor | None = None

    def to(self, device: torch.device | str) -> "Anatomy":
        """Return it on a device."""
        return Anatomy(*(None if part is None else part.to(device) for part in self))

    def grouped(self) -> "Anatomy":
        """Return the same with groups in place of regions; regions without a group become one that is never drawn.

        A group may be drawn where any of its regions may.
        """
        assert self.regions is not None
        assert self.group is not None
        count = int(self.group.max()) + 1
        row = torch.where(self.group < 0, count, self.group)
        drawable = torch.ones_like(row, dtype=torch.bool) if self.drawable is None else self.drawable
        regions = self.regions.new_zeros(count + 1, self.regions.shape[1]).index_add_(0, row, self.regions)
        drawn = torch.zeros(count + 1, dtype=torch.bool, device=row.device).index_fill_(0, row[drawable], True)
        drawn[count] = False
        return Anatomy(regions, drawn, None, self.brain)
