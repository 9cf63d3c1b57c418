"""What became of a launch: the exit code to report, from the launcher's code, status.json and what was left behind.

A launcher's 0 proves nothing: DeepSpeed's returns 0 when its per-node launcher is killed. A run has succeeded when
status.json was written anew and says `done`, the launcher agrees, and no process had to be cleared away.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS = "status.json"
LATEST = Path("checkpoints", "latest")
DONE, REQUEUE, INTERRUPTED, FAILED = "done", "requeue", "interrupted", "failed"
REQUEUE_CODE, INTERRUPTED_CODE, USER_CODE = 75, 130, 2
FINAL = (0, USER_CODE, REQUEUE_CODE, INTERRUPTED_CODE)
"Exit codes after which starting again at once is either needless, useless or somebody else's business."


@dataclass(frozen=True)
class Verdict:
    """An exit code and the sentence that explains it."""

    code: int
    message: str


def read_status(run_dir: Path | None) -> dict[str, Any]:
    """Return status.json of a run folder; empty without a folder, before the first status, or where it was cut."""
    if run_dir is None or not (run_dir / STATUS).is_file():
        return {}
    try:
        found = json.loads((run_dir / STATUS).read_text(errors="replace"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def newest_name(run_dir: Path | None) -> str:
    """Return what `checkpoints/latest` names, for noticing progress; empty before the first checkpoint."""
    if run_dir is None or not (run_dir / LATEST).is_file():
        return ""
    return (run_dir / LATEST).read_text().strip()


def judge(code: int, before: dict[str, Any], after: dict[str, Any], orphans: list[str]) -> Verdict:
    """Return the verdict on a training launch.

    Parameters
    ----------
    code : the launcher's exit code, 128 + signal if it was killed.
    before, after : status.json at the start and at the end.
    orphans : processes that outlived the launcher and were killed or asked to stop.
    """
    state = after.get("state", "") if after != before else ""
    step, steps = after.get("step", 0), after.get("steps", 0)
    tail = f"; {len(orphans)} processes had outlived the launcher: {'; '.join(orphans[:4])}" if orphans else ""
    if state == REQUEUE:
        return Verdict(REQUEUE_CODE, f"stopped on request after step {step} of {steps}, start again to continue{tail}")
    if state == INTERRUPTED:
        return Verdict(INTERRUPTED_CODE, f"interrupted after step {step} of {steps}{tail}")
    if state == FAILED:
        return Verdict(after.get("exit_code") or code or 1, f"failed at step {step}: {after.get('message', '')}{tail}")
    if state == DONE and code == 0 and not orphans:
        return Verdict(0, f"done: {step} steps")
    if state == DONE:
        return Verdict(code or 1, f"all {step} steps are done, but the launcher ended with {code}{tail}")
    where = f"status.json says {state!r} at step {step}" if state else "status.json was not written"
    claim = "reported success" if code == 0 else f"ended with {code}"
    return Verdict(code or 1, f"the launcher {claim}, but {where}: the run was cut short{tail}")


def judge_command(code: int, orphans: list[str]) -> Verdict:
    """Return the verdict on a command without a run folder."""
    if orphans:
        return Verdict(code or 1, f"ended with {code}, but left processes behind: {'; '.join(orphans[:4])}")
    return Verdict(code, f"ended with {code}")
