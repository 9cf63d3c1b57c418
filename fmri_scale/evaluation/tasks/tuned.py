"""Lines of a task's table that are tuned: a release by each method, on the clips of a corpus.

In: a task with a `tuning` section. Out: the clips with their units, and a `Method` a release and method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.compare import Method, Representation
from fmri_scale.evaluation.tasks.schema import TaskConfig
from fmri_scale.evaluation.tasks.units import Naming, UnitTable
from fmri_scale.evaluation.tuning.clips import ClipRows, CorpusClips, corpus_clips
from fmri_scale.evaluation.tuning.settings import FROM_RANDOM
from fmri_scale.evaluation.tuning.tuner import ModelTuner
from fmri_scale.log import get_logger
from fmri_scale.release import from_pretrained

FOLDER = "tuned"
"Below the task's results."

_log = get_logger(__name__)


@dataclass(frozen=True)
class TunedSource:
    """A release to tune, by seed, and the clips that it is trained on.

    Attributes
    ----------
    names
        object (N,): unit of each clip, "" for none.
    """

    name: str
    release: Callable[[int], str]
    clips: CorpusClips
    names: np.ndarray

    def units(self) -> set[str]:
        """Units that have clips."""
        return set(self.names)

    def representation(self, units: UnitTable) -> Representation:
        """Rows of clips; nothing is read before they are used."""
        return Representation(units.numbers(self.names), lambda rows: ClipRows(self.clips, rows))


def read_tuned(task: TaskConfig, naming: Naming) -> list[TunedSource]:
    """List the clips for every release of a task.

    Raises
    ------
    CheckpointError, DataError, CorpusError
        A release or the corpus cannot be used, or releases of several seeds differ in their clips.
    """
    found = []
    config = task.tuning
    for name, path in config.releases.items():
        paths = {seed: path.replace("{seed}", str(seed)) for seed in task.scoring.seeds}
        made = {p: corpus_clips(from_pretrained(p), config.corpus, config.stride, config.clips) for p in paths.values()}
        clips = made[paths[task.scoring.seeds[0]]]
        if any(other.identity != clips.identity for other in made.values()):
            raise DataError(f"tuning.releases.{name}: the seeds' releases differ in clip length or normalisation")
        found.append(TunedSource(name, paths.__getitem__, clips, naming.of_clips(clips.described())))
    return found


def tuned_methods(
    task: TaskConfig, sources: list[TunedSource], units: UnitTable, outputs: int, folder: Path
) -> tuple[list[Method], list[str]]:
    """Lines of the table, and what share of the model each trains.

    Parameters
    ----------
    outputs
        Classes, or 1.
    folder
        Of the task's results; trainings are kept below it.
    """
    methods, notes = [], []
    for source in sources:
        representation = source.representation(units)
        for kind in task.tuning.methods:
            name = f"{source.name} ({kind})"
            tuner = ModelTuner(name, kind, task.tuning, source.release, folder / FOLDER, task.balanced)
            methods.append(_method(tuner, representation, baseline=kind == FROM_RANDOM))
            notes.append(f"{name}: {tuner.share(outputs, task.scoring.seeds[0])}")
            _log.info("%s", notes[-1])
    return methods, notes


def _method(tuner: ModelTuner, representation: Representation, baseline: bool) -> Method:
    return Method(tuner.name, lambda seed: representation, tuner, baseline)
