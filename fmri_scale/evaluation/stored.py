"""Whole runs out of a corpus, for what is no training: time series of regions, features, attribution.

In: a corpus. Out: a `StoredRun` for each run, with the same face as `sharding.prepare.PreparedRun` where features are
concerned (segment, scale, stats, unit, mean, sd, background, tr). Every member read is compared with its checksum.
Shape suffixes: T frames, V voxels.
"""

import functools
import io
from collections.abc import Sequence

import numpy as np
import xxhash

from fmri_scale.errors import DataError
from fmri_scale.evaluation.entities import Entities, entities, entities_of_labels
from sharding.corpus import Corpus


class StoredRun:
    """A run of a corpus.

    Parameters
    ----------
    corpus, rows
        Where it is; int64, rows of the index in the order of time.
    """

    def __init__(self, corpus: Corpus, rows: np.ndarray) -> None:
        self.corpus, self.rows = corpus, rows
        self._held: tuple[int, np.ndarray] | None = None
        "The last sample read, and its codes: neighbouring clips share it."

    def fact(self, column: str) -> object:
        """Value of an index column, the same in all segments of the run."""
        return self.corpus.index[column][self.rows[0]]

    @property
    def name(self) -> str:
        """Key of the run: its samples' keys without their start frame."""
        return str(self.fact("key")).rsplit("__", 1)[0]

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.corpus.index["n_frames"][self.rows].sum())

    @property
    def tr(self) -> float:
        """Spacing of frames in s."""
        return float(self.fact("tr"))  # type: ignore[arg-type]

    @property
    def unit(self) -> float:
        """Unit of the codes."""
        return float(self.fact("unit"))  # type: ignore[arg-type]

    @property
    def mean(self) -> float:
        """Mean over the brain's voxels and all frames."""
        return float(self.fact("mean"))  # type: ignore[arg-type]

    @property
    def sd(self) -> float:
        """Standard deviation over the brain's voxels and all frames."""
        return float(self.fact("sd"))  # type: ignore[arg-type]

    @property
    def background(self) -> float:
        """What lies outside the brain in run_z."""
        return float(self.fact("background"))  # type: ignore[arg-type]

    @functools.cached_property
    def scale(self) -> np.ndarray:
        """float16 (2, V): offset and step."""
        return self._member("scale", self.rows[0])

    @functools.cached_property
    def stats(self) -> np.ndarray:
        """float16 (2, V): shift and sd of voxel_z."""
        return self._member("stats", self.rows[0])

    def segment(self, start: int, stop: int) -> np.ndarray:
        """Codes of frames start to stop, int8 (stop - start, V)."""
        first = self.corpus.index["start_frame"]
        length = self.corpus.index["n_frames"]
        parts = []
        for row in self.rows:
            low, high = max(start - first[row], 0), min(stop - first[row], length[row])
            if low < high:
                parts.append(self._codes(int(row))[low:high])
        return np.concatenate(parts)

    def _codes(self, row: int) -> np.ndarray:
        if self._held is None or self._held[0] != row:
            self._held = (row, self._member("bold", row))
        return self._held[1]

    def _member(self, stem: str, row: int) -> np.ndarray:
        index = self.corpus.index
        path = self.corpus.shard_path(str(index["shard"][row]))
        with path.open("rb") as file:
            file.seek(int(index[f"{stem}_offset"][row]))
            data = file.read(int(index[f"{stem}_bytes"][row]))
        if xxhash.xxh3_64_intdigest(data) != int(index[f"{stem}_xxh3"][row]):
            raise DataError(f"{path}: {stem} of {index['key'][row]} is damaged; restore the shard or build again")
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def stored_runs(corpus: Corpus, splits: Sequence[str] = ()) -> list[StoredRun]:
    """List the runs of a corpus, of some of its splits (train, val, test) or, by default, of all.

    Raises
    ------
    DataError
        No run is left, or the segments of a run do not follow each other.
    """
    index = corpus.index
    labels = np.array([key.rsplit("__", 1)[0] for key in index["key"]], dtype=str)
    wanted = np.isin(index["split"], list(splits)) if splits else np.ones(len(labels), dtype=bool)
    order = np.lexsort((index["start_frame"], labels))
    order = order[wanted[order]]
    if not len(order):
        raise DataError(f"{corpus.path}: no run in split {', '.join(splits) or 'any'}")
    starts = np.flatnonzero(np.r_[True, labels[order][1:] != labels[order][:-1]])
    runs = [StoredRun(corpus, rows) for rows in np.split(order, starts[1:])]
    for run in runs:
        begins, lengths = index["start_frame"][run.rows], index["n_frames"][run.rows]
        if begins[0] != 0 or not np.array_equal(begins[1:], (begins + lengths)[:-1]):
            raise DataError(f"{corpus.path}: segments of {run.name} do not follow each other; build the corpus again")
    return runs


def entities_of_runs(runs: Sequence[StoredRun]) -> Entities:
    """Entities of runs of a corpus."""
    columns = {name: [str(run.fact(name)) for run in runs] for name in ("dataset", "subject", "session", "task")}
    return entities(len(runs), **columns, run=entities_of_labels([run.name for run in runs]).run.tolist())
