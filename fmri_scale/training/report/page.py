"""The page: HTML with everything in it; text of the folder is escaped, nothing runs, nothing is loaded."""

import base64
import html
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fmri_scale.errors import DataError
from fmri_scale.training.report.figures import draw_all
from fmri_scale.training.report.gather import Run, flat, gather

SHOWN = 50
"Rows of a table of faults; the file in the run's folder has the rest."
MOST_ROWS = 2000
"Rows of metrics.jsonl that the page carries, evenly spread where there are more."
MOST_PICTURES = 6
LONG = 40
"Characters from which a table's cell is broken into lines."

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 0 auto; padding: 1rem 1.5rem 4rem;
       color: #1c2530; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { margin-top: 2.4rem; border-bottom: 1px solid #d5dbe3; }
.state { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; background: #e6ebf2; font-weight: 600; }
.state.done { background: #d3f0dc; } .state.failed { background: #f9d6d5; } .state.requeue { background: #fdeec4; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(380px, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .6rem; border: 1px solid #e3e8ee; border-radius: 8px; }
figure svg, figure img { width: 100%; height: auto; }
figcaption { font-weight: 600; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top; border-bottom: 1px solid #eef1f5;
         white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
pre { background: #f5f7fa; padding: 1rem; overflow-x: auto; font-size: .85rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
.scroll { overflow-x: auto; }
"""


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page of a run; return its path, by default `report.html` in the run's folder.

    Raises
    ------
    DataError : not a run's folder, or the page cannot be written.
    """
    run = gather(run_dir)
    target = out or run_dir / "report.html"
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(render(run), encoding="utf-8")
        os.replace(aside, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}; name another file with --out") from error
    return target


def render(run: Run) -> str:
    """Return the page."""
    name = html.escape(run.run_dir.name)
    body = "\n".join(part for section in _sections(run) for part in section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _sections(run: Run) -> Iterator[Iterable[str]]:
    yield _head(run)
    yield _curves(run)
    yield _pictures(run)
    yield _faults(run)
    yield _configuration(run)
    yield _environment(run)
    yield _data(run)


def _head(run: Run) -> Iterator[str]:
    state = str(run.status.get("state", "unknown"))
    yield f"<h1>{html.escape(run.run_dir.name)}</h1><p>{html.escape(str(run.run_dir))}</p>"
    step, steps = run.status.get("step", 0), run.status.get("steps", "?")
    times = f"started {run.status.get('started', '?')}, last sign {run.status.get('updated', '?')}"
    badge = f'<span class="state {html.escape(state)}">{html.escape(state)}</span>'
    host = html.escape(str(run.status.get("host", "?")))
    yield f"<p>{badge} step {_text(step)} of {_text(steps)} &middot; {html.escape(times)} on {host}</p>"
    if run.status.get("message"):
        yield f"<p><strong>{html.escape(str(run.status['message']))}</strong></p>"
    if run.rows:
        last = run.rows[-1]
        yield f"<h2>Last row (step {_text(last.get('step'))} of metrics.jsonl)</h2>"
        yield _table(("quantity", "value"), last.items())


def _curves(run: Run) -> Iterator[str]:
    yield "<h2>Curves</h2>"
    figures = list(draw_all(run.rows))
    if not figures:
        yield "<p>No step has been logged yet.</p>"
        return
    drawn = "".join(f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>" for title, svg in figures)
    yield f'<div class="grid">{drawn}</div>'


def _pictures(run: Run) -> Iterator[str]:
    # the loss curve is drawn above from the same rows
    chosen = [path for path in run.pictures if path.stem != "loss"]
    if not chosen:
        return
    step = max(1, -(-len(chosen) // MOST_PICTURES))
    shown = chosen[::-1][::step][::-1]  # the last one always, others evenly before it
    yield f"<h2>Pictures</h2><p>{len(shown)} of {len(chosen)} in pictures/.</p>"
    yield '<div class="grid">' + "".join(_picture(path) for path in shown) + "</div>"


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.name)
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def _faults(run: Run) -> Iterator[str]:
    yield "<h2>Starts and faults</h2>"
    columns = ("started", "ended", "host", "step", "exit_code", "message", "command")
    yield _listing("Starts (launches.jsonl)", columns, [[row.get(c) for c in columns] for row in run.launches])
    bad = [(row.get("step"), row.get("grad_norm"), _clips(row)) for row in run.bad_steps]
    yield _listing("Skipped steps (bad_steps.jsonl)", ("step", "gradient norm", "clips"), bad)
    columns = ("rank", "position", "shard", "key", "start_frame", "reason", "substitute")
    yield _listing("Clips that could not be read", columns, [[row.get(c) for c in columns] for row in run.quarantine])
    yield _listing("Warnings and errors (logs/rank_*.log)", ("time", "rank", "level", "message"), run.messages)
    if run.damaged:
        yield _table(("file", "lines cut short by a kill"), run.damaged.items())


def _clips(row: dict[str, Any]) -> str:
    return json.dumps(row.get("ranks", ""))[:300]


def _configuration(run: Run) -> Iterator[str]:
    yield "<h2>Configuration</h2>"
    yield _listing("Values that are not the defaults", ("key", "default", "value"), run.changed, opened=True)
    text = html.escape(yaml.safe_dump(run.config, sort_keys=False))
    yield f"<details><summary>All of it (config.yaml)</summary><pre>{text}</pre></details>"


def _environment(run: Run) -> Iterator[str]:
    yield "<h2>Environment and data</h2>"
    if not run.state:
        yield "<p>No checkpoint yet, which records them.</p>"
        return
    kept = ", ".join(map(str, run.checkpoints))
    facts = [(key, value) for key, value in flat(run.state) if not key.startswith("data.")]
    yield f"<p>From the newest checkpoint; kept are those of steps {kept}.</p>"
    yield _table(("state.json", "value"), facts)
    corpus = [(key, value) for key, value in flat({k: v for k, v in run.corpus.items() if k != "shards"})]
    if corpus:
        yield f"<details><summary>Corpus (corpus.json)</summary>{_table(('corpus.json', 'value'), corpus)}</details>"


def _data(run: Run) -> Iterator[str]:
    """The rows behind the curves, for whoever wants the numbers without the folder."""
    every = max(1, -(-len(run.rows) // MOST_ROWS))
    rows = run.rows[::-1][::every][::-1]
    # "<" would let a value end the element
    text = json.dumps(rows).replace("<", "\\u003c")
    yield "<h2>Numbers</h2>"
    said = "every row" if every == 1 else f"every {every}th row"
    yield f"<p>The source of this page holds {said} of metrics.jsonl ({len(rows):,}) as JSON (#metrics).</p>"
    yield f'<script type="application/json" id="metrics">{text}</script>'


def _listing(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], opened: bool = False) -> str:
    """Return a titled table that can be folded; the last SHOWN rows."""
    if not rows:
        return f"<p>{html.escape(title)}: none.</p>"
    count = f"{len(rows)}" if len(rows) <= SHOWN else f"the last {SHOWN} of {len(rows)}"
    attribute = " open" if opened or len(rows) <= 10 else ""
    table = _table(columns, rows[-SHOWN:])
    return f"<details{attribute}><summary>{html.escape(title)}: {count}</summary>{table}</details>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    long = ' class="long"' if len(str(value)) > LONG else ""
    return f"<td{long}>{_text(value)}</td>"


def _text(value: Any) -> str:
    """Return a value as it stands in the file, escaped; null and nothing as a dash."""
    return "&ndash;" if value is None or value == "" else html.escape(str(value))
