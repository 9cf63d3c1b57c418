"""The clips of a corpus as rows of a task: which there are, and their volumes when they are asked for.

In: a corpus made with the model's mask and TR. Out: `CorpusClips`, a row a clip, and `ClipRows`, some of them, which
read and decode nothing until `volumes` is called. Only the clips of a micro-batch are ever in memory.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmri_scale.errors import DataError
from fmri_scale.evaluation.attribution.runs import spread
from fmri_scale.evaluation.corpus_features import corpus_runs
from fmri_scale.evaluation.features import clip_starts, clip_volumes
from fmri_scale.evaluation.stored import StoredRun, entities_of_runs
from fmri_scale.evaluation.vectors import ClipVectors
from fmri_scale.release import Pretrained
from sharding.corpus import open_corpus


@dataclass(frozen=True)
class CorpusClips:
    """N clips of a corpus.

    Attributes
    ----------
    runs
        Runs of the corpus; what they have read is not kept.
    run, start
        int64 (N,): number of each clip's run, and its first frame.
    clip_frames
        Length of a clip.
    identity
        What decides the clips' content: the corpus and its preprocessing.
    """

    runs: list[StoredRun]
    run: np.ndarray
    start: np.ndarray
    clip_frames: int
    identity: str

    def __len__(self) -> int:
        return len(self.run)

    def described(self) -> ClipVectors:
        """The clips with their entities and times, and their numbers as vectors (N, 1)."""
        tr = np.array([run.tr for run in self.runs])[self.run]
        names = np.array([run.name for run in self.runs], dtype=object)[self.run]
        return ClipVectors(
            str(self.runs[0].corpus.path),
            np.arange(len(self), dtype=np.float32)[:, None],
            entities_of_runs(self.runs).take(self.run),
            names,
            self.start * tr,
            self.clip_frames * tr,
            self.start,
            "",
        )

    def volumes(self, model: Pretrained, rows: np.ndarray) -> Tensor:
        """Read, check and decode clips.

        Parameters
        ----------
        model
            Decides normalisation and device.
        rows
            int64 (B,).

        Returns
        -------
        float32 `[B, 1, X, Y, Z, T]`.
        """
        parts = []
        for row in rows:
            run = self.runs[self.run[row]]
            fresh = StoredRun(run.corpus, run.rows)  # holds what it reads, and is given up with it
            parts.append(next(clip_volumes(model, fresh, self.start[row : row + 1], 1)))
        return torch.cat(parts)


@dataclass(frozen=True)
class ClipRows:
    """Some clips, as the inputs of a `Part`."""

    clips: CorpusClips
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def volumes(self, model: Pretrained, picked: np.ndarray) -> Tensor:
        """Volumes of some of these rows, `[B, 1, X, Y, Z, T]`."""
        return self.clips.volumes(model, self.rows[picked])


def corpus_clips(model: Pretrained, corpus: str, stride: int = 0, most: int = 0) -> CorpusClips:
    """List the clips of a corpus.

    Parameters
    ----------
    model
        Decides the length of a clip.
    stride
        Frames between starts; 0: a clip's length.
    most
        Most clips of a run, evenly spread; 0 takes all.

    Raises
    ------
    DataError, CorpusError
        Not a corpus, one for another model, or no run is as long as a clip.
    """
    if not (Path(corpus) / "corpus.json").is_file():
        raise DataError(f"{corpus}: no corpus; tuning reads one: make it with fmri-shards build")
    runs = corpus_runs(model, open_corpus(corpus))
    frames = model.preprocessing.num_frames
    starts = [spread(clip_starts(run.num_frames, frames, stride or None), most) for run in runs]
    if not sum(map(len, starts)):
        raise DataError(f"{corpus}: no run has the {frames} frames of a clip of the model")
    number = np.repeat(np.arange(len(runs)), [len(found) for found in starts])
    identity = f"{runs[0].corpus.corpus_id} {model.preprocessing.normalisation} {frames}"
    return CorpusClips(runs, number, np.concatenate(starts), frames, identity)
