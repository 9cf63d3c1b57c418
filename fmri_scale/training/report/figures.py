"""Curves over the steps of a run as SVG, drawn without a display; a quantity without a finite value has no curve.

In: rows of metrics.jsonl. Out: (title, SVG text). Beyond MOST_POINTS rows a curve shows the mean of groups of rows and,
as a band, their least and largest value, so that a single spike stays visible.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmri_scale.models.strd import RATES
from fmri_scale.training.phases import PHASES

MOST_POINTS = 1000
UNPLOTTED = ("step", "clips", "slowest_rank")
"Numbers that say where a row is, or which rank, rather than how the run was."


@dataclass(frozen=True)
class Panel:
    """One figure: its title, the keys it shows, the unit of its axis, whether that is logarithmic.

    With `top` the axis begins at 0 and reaches at least there, so that nothing looks like nothing.
    """

    title: str
    keys: tuple[str, ...]
    unit: str
    log: bool = False
    top: float = 0.0


PANELS = (
    Panel("Loss", ("loss", "val_loss"), "mean squared error on hidden voxels"),
    Panel("Learning rate", ("lr",), "learning rate"),
    Panel("Gradient norm", ("grad_norm",), "global norm before clipping", log=True),
    Panel("Throughput", ("frames_per_s", "frames_per_s_per_rank"), "frames per second"),
    Panel("Step time", ("step_s",), "seconds per optimizer step"),
    Panel("Phases of a step", tuple(f"time_{name}_s" for name in PHASES), "seconds of a step, rank 0", top=1e-3),
    Panel("Slowest rank", ("slowest_ratio",), "its own time over the median of the others", top=2.0),
    Panel("Data wait", ("data_wait_fraction",), "fraction of the step, slowest rank", top=0.01),
    Panel("Model FLOPs", ("model_tflops_per_rank",), "TFLOP/s per rank"),
    Panel("MFU", ("mfu",), "fraction of the peak of dense bf16"),
    Panel("Roofline", ("roofline_fraction",), "least time that the hardware could take, over the time taken"),
    Panel("Checkpoints", ("checkpoint_s",), "seconds since the last row", top=0.1),
    Panel("Memory", ("peak_memory_gb",), "peak so far, GB (1e9 bytes), rank 0"),
    Panel("Masked", ("masked_fraction", "masked_fraction_brain"), "fraction of tokens hidden"),
    Panel("Redundancy dropout", RATES, "share of tokens dropped, by redundancy from", top=0.1),
    Panel("Bad steps, clips, spikes", ("skipped_steps", "substituted_clips", "loss_spikes"), "count so far", top=1.0),
    Panel("Epoch", ("epoch",), "passes over the data"),
)


def draw_all(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield (title, SVG) of every panel that has something to show; numbers without a panel get one of their own."""
    known = {key for panel in PANELS for key in panel.keys}
    others = sorted({key for row in rows for key, value in row.items() if _is_number(value)} - known - set(UNPLOTTED))
    for panel in (*PANELS, *(Panel(key, (key,), key) for key in others)):
        curves = {key: points for key in panel.keys if (points := finite_points(rows, key))}
        if curves:
            yield panel.title, _draw(panel, curves)


def finite_points(rows: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of the rows that have a finite value."""
    return [(row["step"], row[key]) for row in rows if "step" in row and _is_number(row.get(key))]


def thinned(points: list[tuple[int, float]]) -> np.ndarray:
    """Return rows of (step, mean, least, largest), float64 `[at most MOST_POINTS, 4]`."""
    groups = np.array_split(np.array(points, dtype=float), min(len(points), MOST_POINTS))
    return np.array([[g[:, 0].mean(), g[:, 1].mean(), g[:, 1].min(), g[:, 1].max()] for g in groups])


def _draw(panel: Panel, curves: dict[str, list[tuple[int, float]]]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    # text stays text, so that it can be found and copied; no date, so that the same run gives the same page
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fmri_scale", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(5.6, 3.0))
        for key, points in curves.items():
            shown = thinned(points)
            marker = "o" if len(shown) < 30 else ""  # a single point has no line
            (line,) = axes.plot(shown[:, 0], shown[:, 1], label=key, linewidth=1.3, marker=marker, markersize=3)
            axes.fill_between(shown[:, 0], shown[:, 2], shown[:, 3], alpha=0.2, color=line.get_color(), linewidth=0)
        if panel.log and all(value > 0 for points in curves.values() for _, value in points):
            axes.set_yscale("log")
        if panel.top:
            axes.set_ylim(0, 1.05 * max(panel.top, *(value for points in curves.values() for _, value in points)))
        axes.set(xlabel="step", ylabel=panel.unit)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(panel.keys) > 1:
            axes.legend()
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
