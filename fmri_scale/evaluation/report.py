"""A table of scores as text, and as one HTML file with a chart of the intervals that needs nothing else."""

import html
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from fmri_scale.evaluation.bootstrap import Interval
from fmri_scale.evaluation.scores import ScoreTable

matplotlib.use("Agg")

DIGITS = 3

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .3em .8em; border-bottom: 1px solid #ddd }
th { text-align: left } td { font-variant-numeric: tabular-nums } .baseline { color: #666 } dt { font-weight: 600 }
dd { margin: 0 0 .3em 0 } svg { max-width: 100% }
"""


def markdown_table(scores: ScoreTable) -> str:
    """A line a method, a column a metric: value [low, high]."""
    metrics = _metrics(scores)
    lines = ["| method | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in _cells(scores)]
    return "\n".join(lines)


def html_page(title: str, scores: ScoreTable, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """A page with facts, table, differences to the baselines, chart and notes."""
    metrics = _metrics(scores)
    rows = "".join(_row("td", [name, *cells]) for name, cells in _cells(scores))
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><dl>",
        *(f"<dt>{html.escape(name)}<dd>{html.escape(value)}" for name, value in facts.items()),
        f"</dl><table>{_row('th', ['method', *metrics])}{rows}</table>",
        f"<h2>{html.escape(metrics[0])}: difference to each baseline, on the same draws</h2>",
        difference_table(scores, metrics[0]),
        chart(scores, metrics),
        "<h2>Notes</h2><ul>" + "".join(f"<li>{html.escape(note)}" for note in notes) + "</ul>" if notes else "",
    ]
    return "\n".join(parts) + "\n"


def difference_table(scores: ScoreTable, metric: str) -> str:
    """HTML table of a metric's paired differences to every baseline."""
    cells = [score for score in scores.scores if score.metric == metric]
    baselines = list(dict.fromkeys(name for score in cells for name in score.against))
    rows = [
        _row("td", [score.method, *(shown(score.against[b]) if b in score.against else "" for b in baselines)])
        for score in cells
    ]
    return f"<table>{_row('th', ['method', *(f'minus {name}' for name in baselines)])}{''.join(rows)}</table>"


def shown(interval: Interval) -> str:
    """value [low, high]; a dash for bounds that were withheld."""
    if math.isnan(interval.value):
        return "undefined"
    bounds = "–" if math.isnan(interval.low) else f"{interval.low:.{DIGITS}f}, {interval.high:.{DIGITS}f}"
    return f"{interval.value:.{DIGITS}f} [{bounds}]"


def chart(scores: ScoreTable, metrics: Sequence[str]) -> str:
    """SVG: for each metric the value and interval of every method."""
    import matplotlib.pyplot as plt

    methods = list(dict.fromkeys(score.method for score in scores.scores))
    size = (3.2 * len(metrics) + 2, 0.35 * len(methods) + 1.2)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for place, method in enumerate(methods):
            interval = scores.get(method, metric).interval
            if not math.isnan(interval.low):
                axis.plot([interval.low, interval.high], [place, place], color="#4477aa")
            axis.plot(interval.value, place, "o", color="#4477aa")
        axis.set_title(metric, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(np.arange(len(methods)), methods)
    axes[0][0].invert_yaxis()
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "fmri_scale"}):  # the same numbers give the same bytes
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _metrics(scores: ScoreTable) -> list[str]:
    return list(dict.fromkeys(score.metric for score in scores.scores))


def _cells(scores: ScoreTable) -> list[tuple[str, list[str]]]:
    metrics = _metrics(scores)
    methods = list(dict.fromkeys(score.method for score in scores.scores))
    rows = [(name, [shown(scores.get(name, metric).interval) for metric in metrics]) for name in methods]
    if scores.chance:
        rows.append(("chance", [f"{scores.chance.get(metric, math.nan):.{DIGITS}f}" for metric in metrics]))
    return rows


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
