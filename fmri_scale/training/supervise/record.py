"""launches.jsonl of a run folder: a line for every start of the run, when and how it ended; read by the report."""

import json
import shlex
import socket
import time
from pathlib import Path
from typing import Any

from fmri_scale.training.supervise.keeper import Job
from fmri_scale.training.supervise.verdict import Verdict, read_status

LAUNCHES = "launches.jsonl"


def append(job: Job, started: float, verdict: Verdict) -> None:
    """Add a line; times are ISO 8601 with the zone."""
    if job.run_dir is None:
        return
    row = {
        "launch": job.token,
        "host": socket.gethostname(),
        "hosts": job.hosts,
        "command": shlex.join(job.command),
        "started": _iso(started),
        "ended": _iso(time.time()),
        "step": read_status(job.run_dir).get("step"),
        "exit_code": verdict.code,
        "message": verdict.message,
    }
    with (job.run_dir / LAUNCHES).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run, oldest first; none for a run that was started without a supervisor."""
    path = run_dir / LAUNCHES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
