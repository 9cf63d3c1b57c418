"""A picture of an atlas: its labels over the MNI152 template in three planes, and the patches they give.

In: an `Atlas`. Out: PNG bytes. Left is on the left, and marked.
"""

import numpy as np

from sharding.atlas.make import Atlas
from sharding.atlas.occupancy import maskable_patches
from sharding.planes import PLANES, mark_sides, outline, png_bytes, pyplot, slice_of, template, voxel_of

CUTS_MM = ((-40.0, -8.0, 40.0), (-60.0, -20.0, 20.0), (-24.0, 6.0, 40.0))
"Where each plane is cut, in mm along its axis."


def draw_atlas(atlas: Atlas, title: str) -> bytes:
    """Three planes at three places: labels in colours, and the outline of the patches that can be hidden."""
    plt = pyplot()
    figure, panels = plt.subplots(3, 3, figsize=(9, 9.2), facecolor="black")
    colours = _colours(atlas)
    hidden = _patches(atlas)
    for axis in range(3):
        for column, mm in enumerate(CUTS_MM[axis]):
            panel, index = panels[axis][column], voxel_of(mm, axis)
            panel.imshow(slice_of(template(), axis, index), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.imshow(slice_of_colours(colours, axis, index), interpolation="nearest")
            outline(panel, hidden, axis, index, "white")
            mark_sides(panel, axis)
            panel.set_title(f"{PLANES[axis]}, {'xyz'[axis]} = {mm:g} mm", color="white", fontsize=9)
    figure.suptitle(f"{title}\nwhite outline: patches that a region mask can hide", color="white", fontsize=10)
    figure.tight_layout()
    return png_bytes(figure, dpi=80)


def slice_of_colours(colours: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A plane of an RGBA map (96, 96, 96, 4)."""
    return np.stack([slice_of(colours[..., channel], axis, index) for channel in range(4)], axis=-1)


def _colours(atlas: Atlas) -> np.ndarray:
    """A colour for every region, neighbouring numbers far apart: float32 RGBA (96, 96, 96, 4)."""
    table = np.zeros((int(atlas.labels.max()) + 1, 4), dtype=np.float32)
    palette = pyplot().get_cmap("hsv")
    for place, region in enumerate(atlas.regions):
        table[region.index] = (*palette(place * 0.618034 % 1.0)[:3], 0.65)
    return table[atlas.labels]


def _patches(atlas: Atlas) -> np.ndarray:
    """Voxels of maskable patches, bool (96, 96, 96)."""
    grid = [size // step for size, step in zip(atlas.labels.shape, atlas.patch, strict=True)]
    return np.kron(maskable_patches(atlas.occupancy, atlas.patch_voxels).reshape(grid), np.ones(atlas.patch)) > 0
