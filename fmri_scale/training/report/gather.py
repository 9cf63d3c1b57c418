"""Take from a run's folder what the page shows. Every value keeps where it came from; nothing is computed twice.

A run that is going on, was killed, or has not logged yet is as good as a finished one: what is not there is empty.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fmri_scale.checkpoint import layout
from fmri_scale.config import Config, to_dict
from fmri_scale.errors import DataError
from fmri_scale.training.folder import STATUS, read_status
from fmri_scale.training.guards import BAD_STEPS
from fmri_scale.training.metrics import METRICS
from fmri_scale.training.pictures import PICTURES
from fmri_scale.training.supervise import record

QUARANTINE = "quarantine.jsonl"
_MESSAGE = re.compile(r"(?P<time>\S+) \[(?P<rank>\d+)\] (?P<level>WARNING|ERROR|CRITICAL) (?P<text>.*)")


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Attributes
    ----------
    rows : metrics.jsonl, in order.
    damaged : files with lines that are no JSON (a kill in the middle of one), by name, with their number.
    messages : warnings and errors of all ranks' logs as (time, rank, level, text), in the order of the files.
    changed : keys whose value is not the default, with both.
    state : state.json of the newest checkpoint; corpus: corpus.json there.
    """

    run_dir: Path
    rows: list[dict[str, Any]]
    status: dict[str, Any]
    config: dict[str, Any]
    changed: list[tuple[str, Any, Any]]
    launches: list[dict[str, Any]]
    bad_steps: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    messages: list[tuple[str, str, str, str]]
    checkpoints: list[int]
    state: dict[str, Any]
    corpus: dict[str, Any]
    pictures: list[Path]
    damaged: dict[str, int] = field(default_factory=dict)


def gather(run_dir: Path) -> Run:
    """Read a run's folder.

    Raises
    ------
    DataError : it is not a run's folder.
    """
    if not (run_dir / layout.CONFIG).is_file() and not (run_dir / STATUS).is_file():
        raise DataError(
            f"{run_dir}: not a run's folder (no {layout.CONFIG}, no {STATUS}); give the run_dir of a training"
        )
    damaged: dict[str, int] = {}
    config = _yaml(run_dir / layout.CONFIG)
    found = layout.committed(run_dir)
    newest = found[0].path if found else run_dir / "none"
    return Run(
        run_dir=run_dir.resolve(),
        rows=_lines(run_dir / METRICS, damaged),
        status=read_status(run_dir),
        config=config,
        changed=changed_keys(config),
        launches=_lines(run_dir / record.LAUNCHES, damaged),
        bad_steps=_lines(run_dir / BAD_STEPS, damaged),
        quarantine=_lines(run_dir / QUARANTINE, damaged),
        messages=_messages(run_dir / "logs"),
        checkpoints=sorted(c.step for c in found),
        state=_json(newest / layout.STATE),
        corpus=_json(newest / layout.CORPUS),
        pictures=sorted((run_dir / PICTURES).glob("*.png")),
        damaged=damaged,
    )


def changed_keys(config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, default, value) for each key of a configuration that is not at its default."""
    defaults, values = dict(flat(to_dict(Config()))), dict(flat(config))
    return [(key, defaults.get(key), value) for key, value in values.items() if defaults.get(key) != value]


def flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of nested dicts."""
    pairs = []
    for key, value in content.items():
        nested = isinstance(value, dict) and value
        pairs += flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return pairs


def _lines(path: Path, damaged: dict[str, int]) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object a line; a half line counts as damaged."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged[path.name] = damaged.get(path.name, 0) + 1
    return rows


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {} if path.is_file() else {}


def _messages(folder: Path) -> list[tuple[str, str, str, str]]:
    found = []
    for path in sorted(folder.glob("rank_*.log"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0)):
        for line in path.read_text(errors="replace").splitlines():
            match = _MESSAGE.match(line)
            if match:
                found.append((match["time"], match["rank"], match["level"], match["text"]))
    return found
