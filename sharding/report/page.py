"""The page: HTML with everything in it. Text of the corpus is escaped, nothing runs, nothing is loaded.

In: an opened corpus. Out: one file, which appears only when whole. The numbers stand once more as JSON at its end, for
programs.
"""

import base64
import dataclasses
import html
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharding.corpus import Corpus
from sharding.errors import ShardingError
from sharding.format import SPLITS
from sharding.report.brains import DatasetBrain, look
from sharding.report.figures import MOST_DATASETS, draw_brain, draw_quality, draw_sides
from sharding.report.gather import OUTLIER, Report, gather
from sharding.report.sides import SHIFTED_MM, SURE, Sides
from sharding.write import write_whole

SHOWN = 200
"Rows of a table of faults; runs.parquet has the rest."
MOST_NUMBERS = 2000
"Values of a figure of a dataset, and rows of a list, among the page's numbers."

NUMBER = re.compile(r"[+-]?[0-9.,]+(e[+-]?[0-9]+)?( [MG]iB)?")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 0 auto; padding: 1rem 1.5rem 4rem;
       color: #1c2530; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #d5dbe3; }
table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top; border-bottom: 1px solid #eef1f5; }
th.n, td.n { text-align: right; } td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.findings { padding: .6rem 1.2rem .6rem 2.4rem; border-radius: 8px; background: #e7f5ec; }
.findings.bad { background: #fdecea; }
.brain { background: #000; border-radius: 8px; margin: 0 0 1rem; padding: .5rem; color: #fff; }
.brain img { width: 100%; height: auto; } .brain.bad { outline: 4px solid #d64541; }
.brain figcaption { padding: 0 .4rem; } .brain b { color: #ffb3ad; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 1rem; }
.grid figure { margin: 0; } svg { max-width: 100%; height: auto; }
.note { color: #5a6572; } .scroll { overflow-x: auto; }
"""


def write_report(corpus: Corpus, out: Path, most_runs: int = 60) -> list[str]:
    """Write the page; return its findings, the lines that ask for a person's attention.

    Raises
    ------
    ShardingError
        The page cannot be written, or the corpus cannot be read.
    """
    report = gather(corpus)
    brains, sides = look(corpus, most_runs)
    found = findings(report, brains, sides)
    page = render(corpus, report, brains, sides, found)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, page.encode())
    except OSError as error:
        raise ShardingError(
            f"{out}: cannot be written ({os.strerror(error.errno or 0)}); choose another --out"
        ) from error
    return found


def findings(report: Report, brains: list[DatasetBrain], sides: Sides) -> list[str]:
    """What should not be trained on before someone has looked at it."""
    found = [f"{brain.name}: {text}" for brain in brains if (text := verdict(brain, sides))]
    for brain in brains:
        odd = [run.name for run in brain.runs if brain.side >= SURE and run.side <= -SURE]
        far = [run.name for run in brain.runs if max(map(abs, run.shift_mm)) >= SHIFTED_MM]
        if odd:
            found.append(
                f"{brain.name}: {len(odd)} of {len(brain.runs)} runs look mirrored against the others: {_some(odd)}"
            )
        if far and max(map(abs, brain.shift_mm)) < SHIFTED_MM:
            found.append(
                f"{brain.name}: {len(far)} of {len(brain.runs)} runs lie {SHIFTED_MM:g} mm or more off: {_some(far)}"
            )
    if report.outliers:
        runs = list(dict.fromkeys(outlier.run for outlier in report.outliers))
        found.append(f"{len(runs)} of {report.totals['runs']:,} runs stand out in quality: {_some(runs)}")
    if report.failed:
        found.append(f"runs that could not be used: {len(report.failed):,}")
    return found


def verdict(brain: DatasetBrain, sides: Sides) -> str:
    """What is wrong with how a dataset lies; empty where nothing is."""
    found = []
    if brain.side <= -SURE:
        found.append(
            "left and right lie the other way than in about as many other runs; look which is right"
            if sides.undecided
            else "MIRRORED? left and right lie the other way than in most runs"
        )
    moved = [
        f"{mm:+.0f} mm to the {way}"
        for mm, way in zip(brain.shift_mm, ("right", "front", "top"), strict=True)
        if abs(mm) >= SHIFTED_MM
    ]
    return "; ".join(found + ([f"SHIFTED? {', '.join(moved)}"] if moved else []))


def render(corpus: Corpus, report: Report, brains: list[DatasetBrain], sides: Sides, found: list[str]) -> str:
    """The page's text."""
    body = [*_head(report, found), *_datasets(report), *_brains(corpus, brains, sides), *_quality(report)]
    body += [*_outliers(report), *_left_out(report), _numbers(report, brains)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(report.totals['corpus'])}: corpus report</title>\n"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _head(report: Report, found: list[str]) -> Iterator[str]:
    t = report.totals
    tr = f"TR {t['tr']:g} s" if t["tr"] else "each run's own TR"
    yield f"<h1>{html.escape(t['corpus'])}</h1><p class='note'>corpus {t['id']}</p>"
    yield (
        f"<p>{t['subjects']:,} subjects, {t['runs']:,} runs, {t['frames']:,} frames ({t['hours']:.2f} hours, {tr}) in "
        f"{t['samples']:,} samples, {t['shards']:,} shards, {size(t['bytes'])}; {t['voxels']:,} voxels a frame. "
        f"Licence: {html.escape(t['licence'] or 'not stated')}.</p>"
    )
    items = "".join(f"<li>{html.escape(line)}</li>" for line in found)
    yield f"<ul class='findings bad'>{items}</ul>" if found else "<p class='findings'>Nothing stands out.</p>"


def _datasets(report: Report) -> Iterator[str]:
    yield "<h2>Datasets</h2>"
    head = ["dataset", "subjects", "runs", "failed", "frames", "hours", "size"]
    head += [f"{split} {what}" for split in SPLITS for what in ("subjects", "frames")]
    rows = []
    for row in report.datasets:
        cells = [row["dataset"], *(f"{row[name]:,}" for name in ("subjects", "runs", "failed", "frames"))]
        cells += [f"{row['hours']:.2f}", size(row["bytes"])]
        rows.append(cells + [f"{row[name]:,}" for name in head[7:]])
    yield _table(head, rows)


def _brains(corpus: Corpus, brains: list[DatasetBrain], sides: Sides) -> Iterator[str]:
    yield "<h2>Mean brains</h2>"
    yield (
        "<p class='note'>The mean of the runs of each dataset, each divided by its mean over the brain; the line is "
        "the edge of the stored mask. Left is left. Last panel: the image less its mirror image; in datasets stored "
        "alike it looks alike, in a mirrored one red and blue change places.</p>"
    )
    for brain in brains[:MOST_DATASETS]:
        text = verdict(brain, sides)
        seen = f"{len(brain.runs)} of {brain.total} runs" if len(brain.runs) < brain.total else f"{brain.total} runs"
        place = ", ".join(f"{mm:+.1f}" for mm in brain.shift_mm)
        told = f"r = {brain.side:+.2f} with the sides of the others, shift {place} mm"
        mark, name = f" <b>{html.escape(text)}</b>" if text else "", html.escape(brain.name)
        picture = base64.b64encode(draw_brain(brain, corpus.mask)).decode()
        yield (
            f"<figure class='brain{' bad' if text else ''}'><figcaption>{name} ({seen}): {told}{mark}</figcaption>"
            f"<img alt='mean brain of {name}' src='data:image/png;base64,{picture}'></figure>"
        )
    if len(brains) > MOST_DATASETS:
        yield f"<p class='note'>{len(brains) - MOST_DATASETS} more datasets are in the numbers alone.</p>"
    yield "<h2>Sides and shifts</h2>"
    yield (
        "<p class='note'>A dot is a run. Left: correlation of its left-right asymmetry with that of all other runs; "
        f"below -{SURE:g} it was mirrored against most of them, in the grey band nothing can be said. Others: where it "
        "fits the MNI152 template best; the green band is what a good registration leaves.</p>"
    )
    yield f"<div class='scroll'>{draw_sides(brains)}</div>"


def _quality(report: Report) -> Iterator[str]:
    yield "<h2>Quality</h2><p class='note'>In brackets: runs that have the figure.</p><div class='grid'>"
    equal = []
    for title, values in report.quality.items():
        different = {value for mine in values.values() for value in mine}
        if len(different) == 1:
            equal.append([title, f"{different.pop():.4g}", f"{sum(map(len, values.values())):,}"])
        else:
            yield f"<figure>{draw_quality(title, values)}</figure>"
    yield "</div>"
    if equal:
        yield _table(["the same in every run", "value", "runs"], equal)


def _outliers(report: Report) -> Iterator[str]:
    yield "<h2>Runs that stand out</h2>"
    yield f"<p class='note'>Robust z (from the median absolute deviation) of {OUTLIER:g} or more on the bad side.</p>"
    rows = [
        [o.run, o.title, f"{o.value:.4g}", f"{o.middle:.4g}", f"{o.z:+.1f}", o.compared]
        for o in report.outliers[:SHOWN]
    ]
    yield _table(["run", "figure", "value", "median", "z", "among"], rows) if rows else "<p>None.</p>"
    yield _more(len(report.outliers))


def _left_out(report: Report) -> Iterator[str]:
    yield "<h2>What is not in the corpus, and why</h2>"
    if report.failed:
        yield _table(["run that failed", "reason"], [list(pair) for pair in report.failed[:SHOWN]])
        yield _more(len(report.failed))
    if report.skipped:
        rows = [[reason, f"{count:,}", example] for reason, count, example in report.skipped[:SHOWN]]
        yield _table(["left out because", "files", "one of them"], rows)
    if not (report.failed or report.skipped):
        yield "<p>Everything that was found is in it.</p>"


def _numbers(report: Report, brains: list[DatasetBrain]) -> str:
    """The numbers as JSON, in a script element that nothing runs; `</` cannot occur in it."""
    lying = [
        {"dataset": b.name, "side": b.side, "shift_mm": b.shift_mm, "runs": [dataclasses.asdict(run) for run in b.runs]}
        for b in brains
    ]
    numbers = dataclasses.asdict(report) | {"brains": lying}
    numbers |= {name: numbers[name][:MOST_NUMBERS] for name in ("outliers", "failed", "skipped")}
    for by_dataset in numbers["quality"].values():
        by_dataset |= {name: _thinned(values) for name, values in by_dataset.items()}
    text = json.dumps(numbers, ensure_ascii=True).replace("<", "\\u003c")
    return f'<script type="application/json" id="numbers">{text}</script>'


def _thinned(values: list[float]) -> list[float]:
    """At most MOST_NUMBERS of the values, evenly over their ranks."""
    if len(values) <= MOST_NUMBERS:
        return values
    return [float(value) for value in np.quantile(values, np.linspace(0, 1, MOST_NUMBERS), method="nearest")]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = rows[0] if rows else head
    top = "".join(f"<th{_kind(under)}>{html.escape(cell)}</th>" for cell, under in zip(head, first, strict=True))
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{top}</tr>{lines}</table></div>"


def _cell(text: Any) -> str:
    return f"<td{_kind(text)}>{html.escape(str(text))}</td>"


def _kind(text: Any) -> str:
    """The class of cells that hold a number, with or without a unit of bytes."""
    return " class=n" if NUMBER.fullmatch(str(text)) else ""


def _more(count: int) -> str:
    return f"<p class='note'>and {count - SHOWN:,} more, in runs.parquet</p>" if count > SHOWN else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def size(num_bytes: int) -> str:
    """Bytes as people say them."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
