"""Pictures of values by region: bars, and the brain as glass and in slices (nilearn). Files appear whole."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

MOST_BARS = 40


def bar_chart(
    path: Path, names: Sequence[str], values: np.ndarray, null: np.ndarray, title: str, marked: np.ndarray
) -> None:
    """Draw the largest values as bars over the range of their null.

    Parameters
    ----------
    values
        float64 (R,).
    null
        float64 (P, R): grey bands from its 2.5th to its 97.5th percentile; P may be 0.
    marked
        bool (R,): regions drawn in another colour, such as those that pass a test.
    """
    import matplotlib.pyplot as plt

    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:MOST_BARS]
    figure, axis = plt.subplots(figsize=(7, 0.24 * len(order) + 1.2))
    for place, region in enumerate(order):
        axis.barh(place, values[region], color="#cc6677" if marked[region] else "#4477aa", height=0.7)
        if len(null):
            low, high = np.quantile(null[:, region], [0.025, 0.975])
            axis.plot([low, high], [place, place], color="#999999", linewidth=3, alpha=0.6)
    axis.set_yticks(range(len(order)), [names[region] for region in order], fontsize=7)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10)
    axis.axvline(0, color="black", linewidth=0.6)
    _save(figure, path)


def brain_figures(folder: Path, stem: str, image: Path, title: str) -> list[Path]:
    """Draw a map (NIfTI) as a glass brain and in slices; return the files."""
    from nilearn import plotting

    glass, slices = folder / f"{stem}_glass.png", folder / f"{stem}_slices.png"
    display = plotting.plot_glass_brain(str(image), title=title, colorbar=True, plot_abs=False, display_mode="lyrz")
    _save(display, glass)
    display = plotting.plot_stat_map(str(image), title=title, display_mode="z", cut_coords=7, draw_cross=False)
    _save(display, slices)
    return [glass, slices]


def _save(drawn: Any, path: Path) -> None:
    """Save a figure of matplotlib or nilearn aside, close it, rename."""
    import matplotlib.pyplot as plt

    aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    options = {"bbox_inches": "tight"} if isinstance(drawn, plt.Figure) else {}
    drawn.savefig(str(aside), dpi=110, **options)
    plt.close("all")
    os.replace(aside, path)
