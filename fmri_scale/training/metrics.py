"""The numbers of a run: `metrics.jsonl` always, Weights & Biases if wanted; rank 0 only.

A row of metrics.jsonl is one step. When a run resumes from an earlier step, rows of steps that will be done again
are dropped, so the file is one curve. W&B rows carry the step as a value of their own, so a repeated step is no
conflict there; the run keeps its id through resumes.
"""

import contextlib
import json
import math
import netrc
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fmri_scale.checkpoint import files
from fmri_scale.config import Config, to_dict
from fmri_scale.log import get_logger

log = get_logger(__name__)

METRICS = "metrics.jsonl"
_PATIENCE_S = 30.0
"Seconds W&B may take to start."


class Tracker(Protocol):
    """Where rows go beside metrics.jsonl."""

    run_id: str

    def log(self, row: dict[str, Any]) -> None:
        """Send one row."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Send a picture."""

    def close(self, exit_code: int) -> None:
        """End the run there."""


class NullTracker:
    """Sends nothing; keeps the run id it was given, so that a run may switch W&B off and on again."""

    def __init__(self, run_id: str = "") -> None:
        self.run_id = run_id

    def log(self, row: dict[str, Any]) -> None:
        """Send nothing."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Send nothing."""

    def close(self, exit_code: int) -> None:
        """Do nothing."""


class WandbTracker:
    """A W&B run, online or offline, under an id that survives resumes.

    W&B raises errors of many kinds, its service being a process of its own that can die; none is worth a run. After
    the first one nothing more is sent.
    """

    def __init__(self, config: Config, mode: str, run_id: str) -> None:
        import wandb

        run_dir = Path(config.run_dir)
        self.run_id = run_id or secrets.token_hex(4)
        self._wandb, self._lost = wandb, False
        self._run = wandb.init(
            project=config.log.wandb_project,
            name=config.log.wandb_name or run_dir.resolve().name,
            id=self.run_id,
            resume="allow" if mode == "online" else None,
            dir=str(run_dir),
            mode="online" if mode == "online" else "offline",
            config=to_dict(config),
            settings=wandb.Settings(silent=True, console="off", init_timeout=_PATIENCE_S),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, row: dict[str, Any]) -> None:
        """Send one row."""
        self._try(lambda: self._run.log(row))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Send a picture."""
        self._try(lambda: self._run.log({name: self._wandb.Image(str(path)), "step": step}))

    def close(self, exit_code: int) -> None:
        """End the run at W&B."""
        self._try(lambda: self._run.finish(exit_code=exit_code))

    def _try(self, action: Callable[[], Any]) -> None:
        if self._lost:
            return
        try:
            action()
        except Exception as error:
            self._lost = True
            log.warning("W&B is lost (%s); metrics go on in %s", _first_line(error), METRICS)
            with contextlib.suppress(Exception):
                self._wandb.teardown()  # else a service that has died is asked again when the process ends


def wandb_mode(wanted: str) -> str:
    """Return online, offline or off for `log.wandb`; `auto` is online only where a key is at hand."""
    if wanted != "auto":
        return wanted
    return "online" if os.environ.get("WANDB_API_KEY") or _has_netrc_key() else "offline"


def start_tracker(config: Config, run_id: str) -> Tracker:
    """Return the tracker of a run; if W&B cannot be reached, an offline one, saying so."""
    mode = wandb_mode(config.log.wandb)
    if mode == "off":
        return NullTracker(run_id)
    run_id = run_id or secrets.token_hex(4)
    try:
        return WandbTracker(config, mode, run_id)
    except Exception as error:
        log.warning("W&B cannot start %s (%s)", mode, _first_line(error))
    if mode == "online":
        import wandb

        wandb.teardown()  # else its service still holds the run's id
        try:
            tracker = WandbTracker(config, "offline", run_id)
        except Exception as error:
            log.warning("W&B cannot start offline either (%s)", _first_line(error))
        else:
            log.warning("W&B logs offline; send it later with: wandb sync %s/wandb/offline-*", config.run_dir)
            return tracker
    return NullTracker(run_id)


class MetricsFile:
    """metrics.jsonl of a run: one JSON object a line; values that are not finite are null."""

    def __init__(self, run_dir: Path, resumed_step: int) -> None:
        self.path = run_dir / METRICS
        if self.path.is_file():
            files.write_text(self.path, "".join(_rows_until(self.path, resumed_step)))
        self._file = self.path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row and hand it to the operating system."""
        self._file.write(json.dumps({key: _finite(value) for key, value in row.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, in order."""
    return [json.loads(line) for line in (run_dir / METRICS).read_text(errors="replace").splitlines()]


def _rows_until(path: Path, step: int) -> list[str]:
    """Return the whole lines of steps up to `step`; a kill can leave half a line at the end."""
    kept = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            log.warning("%s: dropped a damaged line", path)
    return kept


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _has_netrc_key() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
