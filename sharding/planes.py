"""Pictures of the canonical grid in three planes, left on the left, with every side marked.

In: maps (96, 96, 96). Out: panels drawn on matplotlib axes, and figures as PNG bytes. No display is needed.
"""

import functools
import io
from typing import Any

import numpy as np

from sharding.format import GRID_AFFINE

PLANES = ("sagittal", "coronal", "axial")
"Named by the axis they cut: x, y, z."

SIDES = (("P", "A", "I", "S"), ("L", "R", "I", "S"), ("L", "R", "P", "A"))
"What lies at the left, right, bottom and top of each plane's picture."


def voxel_of(mm: float, axis: int) -> int:
    """Voxel of the grid at a place in mm along an axis."""
    return round((mm - float(GRID_AFFINE[axis, 3])) / float(GRID_AFFINE[axis, axis]))


def slice_of(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A plane as an image: rows from top to bottom, columns from left (or back) to right (or front)."""
    return np.flipud(np.take(volume, index, axis=axis).T)


def mark_sides(panel: Any, axis: int, colour: str = "white") -> None:
    """Write L and R (P and A, I and S) at the edges of a panel, and take its ticks away."""
    places = [(0.03, 0.5, "left", "center"), (0.97, 0.5, "right", "center")]
    places += [(0.5, 0.02, "center", "bottom"), (0.5, 0.98, "center", "top")]
    for text, (x, y, ha, va) in zip(SIDES[axis], places, strict=True):
        strong = "bold" if text in "LR" else "normal"
        panel.text(x, y, text, color=colour, ha=ha, va=va, fontsize=9, fontweight=strong, transform=panel.transAxes)
    panel.set_xticks([])
    panel.set_yticks([])


def outline(panel: Any, region: np.ndarray, axis: int, index: int, colour: str = "#ff9f1c") -> None:
    """Draw the outline of a region, bool (96, 96, 96), on the panel of a plane."""
    cut = slice_of(region, axis, index)
    if cut.any() and not cut.all():
        panel.contour(cut.astype(float), levels=[0.5], colors=[colour], linewidths=0.8)


@functools.lru_cache(maxsize=1)
def template() -> np.ndarray:
    """The MNI152 T1 template of nilearn on the grid, float32 (96, 96, 96), 0 to 1: a background to look at."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn warns about its own image
        from nilearn.datasets import load_mni152_template

        image = load_mni152_template(resolution=2)
    values, start = np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine)[:3, 3]
    out = np.zeros((96, 96, 96), dtype=np.float32)
    source = [round((GRID_AFFINE[a, 3] - start[a]) / 2) + np.arange(96) for a in range(3)]
    inside = [(index >= 0) & (index < values.shape[a]) for a, index in enumerate(source)]
    taken = values[np.ix_(*[index[keep] for index, keep in zip(source, inside, strict=True)])]
    out[np.ix_(*inside)] = taken / max(float(taken.max()), 1e-6)
    out.setflags(write=False)
    return out


def pyplot() -> Any:
    """matplotlib's pyplot without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def png_bytes(figure: Any, dpi: int = 100) -> bytes:
    """A figure as PNG, and close it; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    pyplot().close(figure)
    return buffer.getvalue()
