"""The units of a task: which rows of which source belong to which unit, what its label is, and who is left out.

In: sources of rows (clips of features, runs of BOLD), each with its entities and, for blocks, its times. Out: a
`UnitTable` of the units that every source has and that have a label; everything left out is counted and named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.baselines import RunSeries, Stretch
from fmri_scale.evaluation.baselines.series import frames_between
from fmri_scale.evaluation.entities import Entities, entities, groups_of, refuse_alike
from fmri_scale.evaluation.events import Block, blocks_of_clips, read_blocks
from fmri_scale.evaluation.tables import Target, name_some, read_families, read_target
from fmri_scale.evaluation.tasks.schema import PREDICTION, TargetConfig, TaskConfig
from fmri_scale.evaluation.vectors import ClipVectors
from fmri_scale.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class UnitTable:
    """n units in the order of their names.

    Attributes
    ----------
    name
        object (n,).
    entities
        Of each unit; what a unit spans several of (the runs of a subject) is "".
    label
        Text or number of each unit; None for units that need none (reidentification).
    blocks
        Name to block, for units that are blocks.
    notes
        What was left out, in sentences.
    """

    name: np.ndarray
    entities: Entities
    label: list[str | float | None]
    blocks: Mapping[str, Block]
    notes: list[str]

    def numbers(self, names: np.ndarray) -> np.ndarray:
        """int64: number of the unit of each name, -1 where it is none."""
        number = {name: i for i, name in enumerate(self.name)}
        return np.array([number.get(name, -1) for name in names], dtype=np.int64)

    def families(self, target: TargetConfig) -> list[np.ndarray]:
        """Family columns, object (n,) each."""
        return read_families(target.table, target.family, self.entities) if target.family else []

    def groups(self, level: str, families: Sequence[np.ndarray]) -> np.ndarray:
        """What may not be divided, object (n,)."""
        if level == "image":
            return np.array([str(label) for label in self.label], dtype=object)
        if level == "family":
            return groups_of(self.entities.names("subject"), families)
        return self.entities.names(level)


class Naming:
    """Names the unit of rows.

    Parameters
    ----------
    task
        Its unit and target decide.
    """

    def __init__(self, task: TaskConfig) -> None:
        self._level, self._target = task.unit, task.target
        read = task.unit == "block"
        self._blocks = read_blocks(*_events_arguments(task.target)) if read else []
        self.blocks: dict[str, Block] = {}
        self.entities: dict[str, tuple[str, ...]] = {}

    def of_clips(self, clips: ClipVectors) -> np.ndarray:
        """Unit of each clip, object (N,), "" for none."""
        if self._level != "block":
            return self._remember(clips.entities, clips.entities.names(self._level))
        runs = clips.entities.names("run")
        names, held = self._blocks_in(clips.entities, runs)
        found = blocks_of_clips(
            held, runs, self._run_of(names), clips.start_s, clips.duration_s, self._target.min_overlap
        )
        return np.array([names[i] if i >= 0 else "" for i in found], dtype=object)

    def of_runs(self, series: RunSeries) -> dict[str, list[Stretch]]:
        """Parts of runs that belong to each unit."""
        found: dict[str, list[Stretch]] = {}
        if self._level != "block":
            for run, name in enumerate(self._remember(series.entities, series.entities.names(self._level))):
                found.setdefault(name, []).append(Stretch(run))
            return found
        runs = series.entities.names("run")
        number = {name: i for i, name in enumerate(runs)}
        names, held = self._blocks_in(series.entities, runs)
        for name, run_name, block in zip(names, self._run_of(names), held, strict=True):
            run = number[run_name]
            first, stop = frames_between(block.start_s, block.stop_s, series.tr(run), len(series.series(run)))
            if first < stop:
                found[name] = [Stretch(run, first, stop)]
        return found

    def _remember(self, rows: Entities, names: np.ndarray) -> np.ndarray:
        for i in np.unique(names.astype(str), return_index=True)[1]:
            keep = {"subject": 2, "session": 3, "run": 5, "block": 5}[self._level]
            values = [rows.dataset[i], rows.subject[i], rows.session[i], rows.task[i], rows.run[i]]
            self.entities[names[i]] = tuple(v if k < keep else "" for k, v in enumerate(values))
        return names

    def _blocks_in(self, rows: Entities, runs: np.ndarray) -> tuple[list[str], list[Block]]:
        """Names and blocks of the runs that rows are of."""
        names, held = [], []
        self._refuse_alike(rows)
        for run, i in zip(*np.unique(runs.astype(str), return_index=True), strict=True):
            key = (rows.subject[i], rows.session[i], rows.task[i], rows.run[i])
            mine = [b for b in self._blocks if (b.subject, b.session, b.task, b.run) == key]
            for number, block in enumerate(sorted(mine, key=lambda b: b.start_s), start=1):
                names.append(f"{run}#{number:02d}")
                held.append(block)
                self.blocks[names[-1]] = block
                self.entities[names[-1]] = (rows.dataset[i], *key)
        if not names:
            raise DataError(
                f"{self._target.events}: no events file is of a run of the features; these have runs such as {runs[0]}"
            )
        return names, held

    def _refuse_alike(self, rows: Entities) -> None:
        """Raise DataError where one events file would be that of runs of two datasets."""
        keys = list(zip(rows.subject, rows.session, rows.task, rows.run, strict=True))
        known = {(block.subject, block.session, block.task, block.run) for block in self._blocks}
        refuse_alike(keys, rows.dataset, known, self._target.events, "runs", "evaluate one dataset at a time")

    @staticmethod
    def _run_of(names: Sequence[str]) -> np.ndarray:
        return np.array([name.rsplit("#", 1)[0] for name in names], dtype=object)


def unit_table(task: TaskConfig, naming: Naming, sources: Mapping[str, set[str]]) -> UnitTable:
    """Keep the units that every source has and that have a label.

    Parameters
    ----------
    naming
        Has named the rows of all sources.
    sources
        Source to the names of the units that it has rows of.

    Raises
    ------
    DataError
        No unit is left.
    """
    every = set.union(*sources.values()) - {""}
    notes, kept = [], set(every)
    for source, theirs in sources.items():
        lost = sorted(every - theirs)
        if lost:
            notes.append(f"{len(lost)} of {len(every)} {task.unit}s have no rows in {source}: {name_some(lost)}")
        kept &= theirs
    names = sorted(kept)
    if not names:
        examples = "; ".join(f"{source}: {name_some(sorted(found)[:1])}" for source, found in sources.items())
        raise DataError(f"no {task.unit} is in every source ({examples}); names must be equal, dataset included")
    columns = zip(*(naming.entities[name] for name in names), strict=True)
    of_units = entities(len(names), **dict(zip(("dataset", "subject", "session", "task", "run"), columns, strict=True)))
    label = _labels(task, naming, names, of_units)
    if task.kind != "reidentification":
        names, of_units, label = _with_label(task, names, of_units, label, notes)
    for note in notes:
        _log.warning("%s", note)
    return UnitTable(np.array(names, dtype=object), of_units, label, naming.blocks, notes)


def _labels(task: TaskConfig, naming: Naming, names: list[str], of_units: Entities) -> list[str | float | None]:
    if task.kind == "reidentification":
        return [None] * len(names)
    if task.unit == "block":
        return [naming.blocks[name].label for name in names]
    kind = task.kind if task.kind in PREDICTION else "classification"
    target: Target = read_target(task.target.table, task.target.column, kind, task.target.missing)
    return target.of(of_units)


def _with_label(
    task: TaskConfig, names: list[str], of_units: Entities, label: list[str | float | None], notes: list[str]
) -> tuple[list[str], Entities, list[str | float | None]]:
    rows = np.array([i for i, value in enumerate(label) if value is not None], dtype=np.int64)
    if len(rows) < len(names):
        lost = sorted(set(names) - {names[i] for i in rows})
        notes.append(f"{len(lost)} of {len(names)} {task.unit}s have no {task.target.column}: {name_some(lost)}")
    if not len(rows):
        raise DataError(f"no {task.unit} with features has a value of {task.target.column}")
    return [names[i] for i in rows], of_units.take(rows), [label[i] for i in rows]


def _events_arguments(target: TargetConfig) -> tuple[str, str, float, list[str]]:
    return target.events, target.event_column, target.delay_s, target.ignore
