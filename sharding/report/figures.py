"""Figures of a corpus' report: mean brains with the mask's outline, sides and shifts, distributions of quality.

In: mean brains (brains.py) and the numbers (gather.py). Out: PNG bytes for the brains and SVG text for the charts, for
a page that loads nothing. Left is on the left everywhere, and marked.
"""

import io
import re
from typing import Any

import numpy as np

from sharding.planes import PLANES, mark_sides, outline, png_bytes, pyplot, slice_of, voxel_of
from sharding.report.brains import DatasetBrain
from sharding.report.sides import SHIFTED_MM, SURE, mirrored

CUT_MM = (0.0, -18.0, 8.0)
"Where the planes are cut: near the middle of the MNI152 brain."
INK = "#1c2530"
COLOURS = ("#3b6fb6", "#e07b39", "#3f9b73", "#b5477d", "#7a6bbf", "#8a8a2e", "#4aa3b5", "#c24d4d")
MOST_DATASETS = 24
"Datasets drawn; a page of hundreds would not be looked at."


def draw_brain(brain: DatasetBrain, mask: np.ndarray) -> bytes:
    """A dataset's mean image in three planes with the outline of the mask; beside it, left less right in the last."""
    plt = pyplot()
    inside = mask & (brain.mean != 0)
    low, high = np.percentile(brain.mean[inside], [1, 99]) if inside.any() else (0.0, 1.0)
    figure, panels = plt.subplots(1, 4, figsize=(10.4, 2.9), facecolor="black")
    for axis in range(3):
        index = voxel_of(CUT_MM[axis], axis)
        shown = slice_of(brain.mean, axis, index)
        panels[axis].imshow(shown, cmap="gray", vmin=min(low, 0.2 * high), vmax=high, interpolation="nearest")
        outline(panels[axis], mask, axis, index)
        mark_sides(panels[axis], axis)
        panels[axis].set_title(f"{PLANES[axis]}, {'xyz'[axis]} = {CUT_MM[axis]:g} mm", color="white", fontsize=9)
    both = mask & mirrored(mask)
    difference = np.where(both, brain.mean - mirrored(brain.mean), 0)
    top = float(np.percentile(np.abs(difference[both]), 99)) if both.any() else 1.0
    index = voxel_of(CUT_MM[2], 2)
    panels[3].imshow(slice_of(difference, 2, index), cmap="RdBu_r", vmin=-top or -1, vmax=top or 1)
    outline(panels[3], mask, 2, index, "black")
    mark_sides(panels[3], 2, INK)
    panels[3].set_title("axial, less its mirror image", color="white", fontsize=9)
    figure.tight_layout(pad=0.4)
    return png_bytes(figure, dpi=75)


def draw_sides(brains: list[DatasetBrain]) -> str:
    """Every run's agreement with the others about left and right, and its shift along each axis."""
    plt = pyplot()
    shown = brains[:MOST_DATASETS]
    figure, panels = plt.subplots(1, 4, figsize=(11, 1.2 + 0.32 * len(shown)), sharey=True)
    columns = [[[run.side for run in brain.runs] for brain in shown]]
    columns += [[[run.shift_mm[axis] for run in brain.runs] for brain in shown] for axis in range(3)]
    names = ["same side as most runs (r)", "to the right (mm)", "to the front (mm)", "to the top (mm)"]
    for panel, values, name, limit in zip(panels, columns, names, (SURE, *[SHIFTED_MM] * 3), strict=True):
        panel.axvspan(-limit, limit, color="#eef2f7" if limit == SURE else "#e4f3ea", zorder=0)
        panel.axvline(0, color="#9aa5b1", linewidth=0.7)
        for row, mine in enumerate(values):
            spread = row + 0.22 * np.sin(2.4 * np.arange(len(mine)))
            panel.scatter(mine, spread, s=12, color=COLOURS[row % len(COLOURS)], alpha=0.8, linewidths=0)
        panel.set_title(name, fontsize=9)
        reach = 1.05 if limit == SURE else 11
        panel.set_xlim(-reach, reach)
    panels[0].set_yticks(range(len(shown)), [brain.name for brain in shown])
    panels[0].invert_yaxis()
    return _svg(figure)


def draw_quality(title: str, values: dict[str, list[float]]) -> str:
    """One quality figure: for every dataset its dots over the median, the quartiles and the 5th to 95th percentile."""
    plt = pyplot()
    shown = list(values.items())[:MOST_DATASETS]
    figure, panel = plt.subplots(figsize=(5.4, 0.9 + 0.3 * len(shown)))
    data = [mine for _, mine in shown]
    for row, mine in enumerate(data):
        low, first, middle, third, high = np.quantile(mine, [0.05, 0.25, 0.5, 0.75, 0.95])
        panel.plot([low, high], [row, row], color="#c3cbd5", linewidth=1)
        panel.plot([first, third], [row, row], color="#c3cbd5", linewidth=9, solid_capstyle="butt")
        panel.plot([middle, middle], [row - 0.3, row + 0.3], color=INK, linewidth=1.5)
        dots = np.array(mine) if len(mine) <= 400 else np.quantile(mine, np.linspace(0, 1, 400))
        spread = row + 0.2 * np.sin(2.4 * np.arange(len(dots)))
        panel.scatter(dots, spread, s=8, color=COLOURS[row % len(COLOURS)], alpha=0.7, linewidths=0, zorder=3)
    panel.set_yticks(range(len(data)), [f"{name} ({len(mine)})" for name, mine in shown])
    panel.set_title(title, fontsize=10)
    panel.ticklabel_format(axis="x", useOffset=False)  # 0.99997, not 7e-5 and somewhere else 9.999e-1
    panel.locator_params(axis="x", nbins=5)
    panel.grid(axis="x", alpha=0.3)
    panel.set_ylim(len(data) - 0.4, -0.6)
    return _svg(figure)


def _svg(figure: Any) -> str:
    """A figure as SVG for a page: no prolog, no date, text as text; the same figure gives the same lines."""
    plt = pyplot()
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "fmri-shards", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
