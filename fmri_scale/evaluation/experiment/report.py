"""The report of an experiment: arms with what they hid, every task with its baselines, differences to the first arm."""

import html
from collections.abc import Mapping, Sequence

import pandas as pd

from fmri_scale.evaluation.bootstrap import Interval
from fmri_scale.evaluation.experiment.schema import ExperimentConfig
from fmri_scale.evaluation.report import STYLE, shown

FRACTION = "masked_fraction_brain"


def experiment_page(
    config: ExperimentConfig,
    tables: Mapping[str, pd.DataFrame],
    training: pd.DataFrame,
    attributions: Sequence[str],
) -> str:
    """Return the page.

    Parameters
    ----------
    tables
        Task to its results, as `ScoreTable.frame` writes them.
    training
        A row an arm and seed: loss and fractions hidden.
    attributions
        Names of attributions, whose pages are linked.
    """
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(config.name)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(config.name)}</h1>",
        f"<p>{len(config.arms)} arms, {len(config.seeds)} seeds; "
        f"scored on {'test' if config.final else 'validation'} groups.",
        "<h2>Pretraining</h2>",
        *(f"<p><strong>{html.escape(line)}</strong>" for line in fraction_warnings(training, config.max_fraction_gap)),
        _arms_table(training),
    ]
    for name, table in tables.items():
        parts += [f"<h2>{html.escape(name)}</h2>", task_table(table)]
        parts.append(f'<p><a href="tasks/{html.escape(name)}/report.html">full table, chart and notes</a>')
    if attributions:
        parts.append("<h2>Attribution</h2>")
        parts += [f'<p><a href="attribution/{html.escape(n)}/report.html">{html.escape(n)}</a>' for n in attributions]
    return "\n".join(parts) + "\n"


def fraction_warnings(training: pd.DataFrame, max_gap: float) -> list[str]:
    """Say which arms hid unequal parts of the brain: their comparison is not one of masks alone."""
    if FRACTION not in training.columns:
        return []
    means = training.groupby("arm", sort=False)[FRACTION].mean()
    if means.max() - means.min() <= max_gap:
        return []
    listed = ", ".join(f"{arm} {value:.1%}" for arm, value in means.items())
    return [f"Arms hid unequal fractions of the brain ({listed}): a difference between them may be due to that alone."]


def task_table(table: pd.DataFrame) -> str:
    """HTML table of a task: a row a method, value and interval of each metric, units and groups below."""
    metrics = list(dict.fromkeys(table["metric"]))
    rows = []
    for method, cells in table.groupby("method", sort=False):
        by_metric = cells.set_index("metric")
        texts = [_cell(by_metric.loc[metric]) for metric in metrics]
        rows.append("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in (str(method), *texts)) + "</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("method", *metrics))
    first = table.iloc[0]
    below = f"{int(first['units'])} units of {int(first['groups'])} groups, {int(first['seeds'])} seeds"
    return f"<table><tr>{head}</tr>{''.join(rows)}</table><p>{below}; intervals over groups, mean over seeds."


def _cell(row: pd.Series) -> str:
    return shown(Interval(float(row["value"]), float(row["low"]), float(row["high"])))


def _arms_table(training: pd.DataFrame) -> str:
    means = training.drop(columns="seed").groupby("arm", sort=False).mean().reset_index()
    return means.to_html(index=False, float_format=lambda value: f"{value:.4f}", border=0)
