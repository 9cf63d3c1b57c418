"""Features of clips as `fmri-scale features` writes them, with the entities of each clip's run.

In: an .npz of plain arrays. Out: `ClipVectors`, a row a clip. Nothing is computed here.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.entities import Entities, entities_of_labels


@dataclass(frozen=True)
class ClipVectors:
    """N clips.

    Attributes
    ----------
    source
        The file, for messages.
    vectors
        float32 (N, E), or (N, L, E) where the file holds L tokens a clip.
    entities
        Of each clip's run.
    run
        object (N,): name of each clip's run.
    start_s, duration_s
        float64 (N,): begin of the clip from the run's first frame, and its length.
    start_frame
        int64 (N,): the same begin in frames.
    release
        Digest of the model that made them.
    """

    source: str
    vectors: np.ndarray
    entities: Entities
    run: np.ndarray
    start_s: np.ndarray
    duration_s: np.ndarray
    start_frame: np.ndarray
    release: str


def read_vectors(path: str | Path, tokens: bool = False) -> ClipVectors:
    """Read features.

    Parameters
    ----------
    path
        .npz of `fmri-scale features`.
    tokens
        Take the token features instead of their mean.

    Raises
    ------
    DataError
        The file is missing, is a plain array, holds no features, or values that are not finite.
    """
    path = Path(path)
    name = "clip_tokens" if tokens else "clip_features"
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: one plain array; expected the .npz that fmri-scale features writes")
        with opened as file:
            if tokens and name not in file:
                raise DataError(f"{path}: holds no tokens, which an attentive probe needs; add --tokens to features")
            vectors, run_of = np.asarray(file[name], dtype=np.float32), file["clip_run"]
            keys, tr, start_s = file["run_key"], file["run_tr"], file["clip_start_s"]
            start_frame = file["clip_start_frame"].astype(np.int64)
            frames, release = int(file["clip_frames"]), str(file["release"])
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not features of fmri-scale features ({error})") from error
    bad = np.flatnonzero(~np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1))
    if len(bad):
        raise DataError(f"{path}: {len(bad)} clips, such as clip {bad[0]} of {keys[run_of[bad[0]]]}, are not finite")
    run = keys[run_of].astype(object)
    duration = frames * tr[run_of]
    return ClipVectors(
        str(path),
        vectors,
        entities_of_labels(run.tolist()),
        run,
        start_s.astype(np.float64),
        duration,
        start_frame,
        release,
    )
