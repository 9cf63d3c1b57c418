"""Runs by name, from a corpus or from NIfTI files, for methods that look at clips again."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fmri_scale.errors import ConfigError
from fmri_scale.evaluation.baselines.series import series_only
from fmri_scale.evaluation.corpus_features import corpus_runs
from fmri_scale.evaluation.entities import Entities, entities_of_labels
from fmri_scale.evaluation.features import CodedRun
from fmri_scale.evaluation.stored import entities_of_runs
from fmri_scale.release import Pretrained
from sharding.corpus import open_corpus
from sharding.discover import find_runs
from sharding.keys import run_label
from sharding.prepare import prepare_run


class RunLibrary:
    """Opens runs for a model.

    Parameters
    ----------
    model
        Decides preprocessing and mask.
    source
        Corpus, or NIfTI file, folder or table.
    assume_mni
        Take NIfTI images as they lie.

    Attributes
    ----------
    names
        object (n,): names of the runs, as in features.
    entities
        Theirs.
    """

    def __init__(self, model: Pretrained, source: str | Path, assume_mni: bool = False) -> None:
        self._model, self._assume_mni = model, assume_mni
        self.entities: Entities
        if (Path(source) / "corpus.json").is_file():
            self._stored = corpus_runs(model, open_corpus(source))
            self._files = []
            self.names = np.array([run.name for run in self._stored], dtype=object)
            self.entities = entities_of_runs(self._stored)
        else:
            self._files, self._stored = series_only(find_runs([source])[0]), []
            self.names = np.array([run_label(file) for file in self._files], dtype=object)
            self.entities = entities_of_labels(self.names.tolist())

    @contextlib.contextmanager
    def open(self, number: int) -> Iterator[tuple[CodedRun, int]]:
        """Give a run and its number of frames."""
        if self._stored:
            yield self._stored[number], self._stored[number].num_frames
            return
        file, model = self._files[number], self._model
        run = prepare_run(
            file.path,
            model.preprocessing.settings,
            tr=file.tr,
            mask_path=file.mask,
            confounds_path=file.confounds,
            assume_mni=self._assume_mni,
            mask=model.mask,
        )
        with contextlib.closing(run):
            yield run, run.num_frames


def check_counts(**counts: int) -> None:
    """Raise ConfigError for the first count below 0; 0 has a meaning of its own (no permutations, all clips)."""
    for name, count in counts.items():
        if count < 0:
            raise ConfigError(f"{name}={count}: expected a whole number, 0 or more")


def spread(starts: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """Take at most `most` of the clips, evenly over the run; 0 takes all."""
    starts = np.asarray(starts, dtype=np.int64)
    if not most or len(starts) <= most:
        return starts
    return starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
