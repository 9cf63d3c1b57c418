"""Run one task file into a folder."""

from pathlib import Path

from fmri_scale.evaluation.tasks.predict import predict
from fmri_scale.evaluation.tasks.reidentify import reidentify_task
from fmri_scale.evaluation.tasks.result import TaskResult
from fmri_scale.evaluation.tasks.retrieve import retrieve
from fmri_scale.evaluation.tasks.schema import TaskConfig

BOOK_FILE = "test_openings.jsonl"


def run_task(task: TaskConfig, out: Path, final: bool) -> TaskResult:
    """Evaluate a task and write its results.

    Parameters
    ----------
    task
        Checked configuration.
    out
        Folder to write to; made if needed, results there are replaced. The book of test openings is only added to.
    final
        Open the test sets; else everything is scored on validation.

    Raises
    ------
    FmriScaleError, ShardingError
        Something cannot be read or does not fit together.
    """
    out.mkdir(parents=True, exist_ok=True)
    runner = {"retrieval": retrieve, "reidentification": reidentify_task}.get(task.kind, predict)
    result = runner(task, final, out / BOOK_FILE)
    result.save(out)
    return result
