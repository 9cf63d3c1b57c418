"""Downstream tasks: what a task file says, and how it becomes units, methods, splits and a report."""

from fmri_scale.evaluation.tasks.schema import TaskConfig, load_task

__all__ = ["TaskConfig", "load_task"]
