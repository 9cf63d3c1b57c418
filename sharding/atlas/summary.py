"""What became of an atlas, for a person to read: regions kept and lost, tokens covered, sides checked.

In: an `Atlas`. Out: text. A region whose name says left or right is looked for on that side (x < 0 is left), which
shows an atlas that was mirrored on the way.
"""

import re

import numpy as np

from sharding.atlas.make import Atlas, totals
from sharding.atlas.occupancy import own_patches
from sharding.format import GRID_AFFINE

_SIDE = re.compile(r"(?:^|[\W_])(?:(L|LH|Left|left)|(R|RH|Right|right))(?=$|[\W_])")


def describe_atlas(atlas: Atlas) -> str:
    """Source, totals, groups, lost regions, and sides that are wrong."""
    facts, source = totals(atlas), atlas.source
    voxel = " x ".join(f"{size:g}" for size in source["voxel_mm"])
    small = int((own_patches(atlas.occupancy, atlas.patch_voxels).sum(axis=1) == 0).sum())
    lines = [
        f"atlas     {source['file']}: {' x '.join(map(str, source['shape']))} voxels of {voxel} mm, "
        f"{source['orientation']}, brought to the grid by {source['geometry']}",
        f"patches   {' x '.join(map(str, atlas.patch))} voxels, occupancy {atlas.method}",
        f"regions   {facts['regions']} kept, {facts['lost']} lost"
        + (f", {facts['groups']} groups" if facts["groups"] else ", no groups"),
        f"tokens    {facts['labelled']:,} of {facts['patches']:,} of a frame carry a label "
        f"({facts['labelled'] / facts['patches']:.1%}), {facts['maskable']:,} enough of it to be hidden",
        f"brain     {facts['labelled_brain']:,} of {facts['brain']:,} tokens that hold brain carry a label "
        f"({facts['labelled_brain'] / facts['brain']:.1%})",
    ]
    if small:
        lines.append(f"small     {small} regions decide no patch alone; they are hidden together with neighbours")
    lines += [_sides(atlas), *_groups(atlas)]
    lines += [f"lost      {label.name} ({label.index}): {reason}" for label, reason in atlas.lost]
    return "\n".join(lines) + "\n"


def side_of(name: str) -> int:
    """-1 where a region's name says left, 1 where it says right, 0 where it says neither or both."""
    sides = {-1 if match.group(1) else 1 for match in _SIDE.finditer(name)}
    return sides.pop() if len(sides) == 1 else 0


def wrong_sides(atlas: Atlas) -> tuple[int, list[str]]:
    """How many regions name a side, and the names of those whose centre lies on the other."""
    x_mm = GRID_AFFINE[0, 0] * np.arange(atlas.labels.shape[0]) + GRID_AFFINE[0, 3]
    count, wrong = 0, []
    for region in atlas.regions:
        if side := side_of(region.name):
            along = (atlas.labels == region.index).sum(axis=(1, 2))
            count += 1
            if side * float(along @ x_mm) < 0:
                wrong.append(region.name)
    return count, wrong


def _sides(atlas: Atlas) -> str:
    count, wrong = wrong_sides(atlas)
    if not wrong:
        return f"sides     {count} regions name a side; every one lies on it"
    shown = ", ".join(wrong[:6]) + (f" and {len(wrong) - 6} more" if len(wrong) > 6 else "")
    return f"sides     WRONG: {len(wrong)} of {count} regions lie on the side their name does not say: {shown}"


def _groups(atlas: Atlas) -> list[str]:
    lines = []
    for group in atlas.groups:
        rows = [row for row, region in enumerate(atlas.regions) if region.group == group]
        tokens = np.count_nonzero(atlas.occupancy[rows].any(axis=0))
        lines.append(f"group     {group}: {len(rows)} regions in {tokens:,} tokens")
    return lines
