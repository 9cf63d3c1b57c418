"""What a task leaves: the table, predictions, splits, chosen settings, and the task as it was run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fmri_scale.checkpoint.files import write_json, write_text
from fmri_scale.evaluation.report import html_page, markdown_table
from fmri_scale.evaluation.scores import ScoreTable
from fmri_scale.evaluation.split_file import save_split
from fmri_scale.evaluation.splits import Split
from fmri_scale.evaluation.tasks.schema import TaskConfig

TABLE_FILE, PREDICTIONS_FILE, REPORT_FILE = "results.csv", "predictions.parquet", "report.html"


@dataclass(frozen=True)
class TaskResult:
    """Outcome of a task.

    Attributes
    ----------
    predictions
        A row a unit, method and seed.
    splits
        By seed.
    settings
        (method, seed, fold) to what validation chose.
    notes
        Who was left out, and what the reader must know.
    """

    task: TaskConfig
    scores: ScoreTable
    predictions: pd.DataFrame
    splits: Mapping[int, Split]
    settings: Mapping[tuple[str, int, str], Any]
    notes: list[str]

    def markdown(self) -> str:
        """The table as text."""
        return markdown_table(self.scores)

    def save(self, out: Path) -> None:
        """Write everything to a folder; each file appears whole."""
        (out / "splits").mkdir(parents=True, exist_ok=True)
        for seed, split in self.splits.items():
            save_split(split, out / "splits" / f"seed-{seed}.json")
        write_text(out / "task.yaml", yaml.safe_dump(asdict(self.task), sort_keys=False))
        settings = [{"method": m, "seed": s, "fold": f, "setting": str(v)} for (m, s, f), v in self.settings.items()]
        write_json(out / "settings.json", settings)
        write_json(out / "notes.json", self.notes)
        aside = out / f".{PREDICTIONS_FILE}.tmp"
        self.predictions.to_parquet(aside, index=False)
        aside.replace(out / PREDICTIONS_FILE)
        write_text(out / TABLE_FILE, self.scores.frame().to_csv(index=False))
        write_text(out / "report.md", self._page_text())
        write_text(out / REPORT_FILE, html_page(self.task.name, self.scores, self.facts(), self.notes))

    def facts(self) -> dict[str, str]:
        """What stands above the table."""
        scores, split = self.scores, self.task.split
        side = (
            f"test set, opened {scores.openings} time(s) in this folder"
            if scores.openings
            else "validation, by which settings were chosen: optimistic; the test set is sealed (--final opens it)"
        )
        target = self.task.target
        widened = f", {scores.spread:.2f} times as wide because folds share training sets" * (scores.spread > 1)
        of = f" of {target.column or target.event_column}" if target.table or target.events else ""
        return {
            "task": f"{self.task.kind}{of} by {self.task.unit}",
            "scored on": side,
            "units": f"{scores.num_units} {self.task.unit}s of {scores.num_groups} groups ({split.group})",
            "split": f"{split.method}, nothing of one {split.group} on two sides",
            "seeds": str(scores.num_seeds),
            "intervals": f"{scores.level:.0%}, {self.task.scoring.draws} draws of groups{widened}",
        }

    def _page_text(self) -> str:
        facts = [f"- {name}: {value}" for name, value in self.facts().items()]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"# {self.task.name}", "", *facts, *notes, "", self.markdown(), ""])
