"""Mean brains of a corpus: what its runs look like, without reading any signal.

In: an opened corpus. Out: the temporal mean of runs and the mean image of every dataset, (96, 96, 96). The mean of a
voxel is computed from the statistics of a sample (offset, mean and deviation of each voxel; all samples of a run have
the same), so a corpus of any size is judged from a few runs of each dataset, evenly spread.
"""

from dataclasses import dataclass

import numpy as np
import xxhash

from sharding.corpus import Corpus
from sharding.errors import CorpusError
from sharding.format import GRID_SHAPE, NPY_HEADER_BYTES
from sharding.mask import brain_mask
from sharding.report.sides import Sides, asymmetry_of, compare_sides, shift_of


@dataclass(frozen=True)
class RunBrain:
    """How one run lies."""

    name: str
    "Its samples' key without the segment."
    dataset: str
    shift_mm: tuple[float, float, float]
    "Towards right, front and top, from the template's place."
    side: float
    "Correlation of its asymmetry with that of the other runs (see sides.py); 0 where it cannot be told."


@dataclass(frozen=True)
class DatasetBrain:
    """A dataset's mean image (each run divided by its mean over the brain), and how its runs lie."""

    name: str
    mean: np.ndarray
    "float32 (96, 96, 96), 0 outside the mask."
    runs: list[RunBrain]
    total: int
    "Runs of the dataset; `runs` are those that were looked at."

    @property
    def side(self) -> float:
        """Median over runs."""
        return float(np.median([run.side for run in self.runs]))

    @property
    def shift_mm(self) -> tuple[float, float, float]:
        """Median over runs, along x, y, z."""
        x, y, z = np.median([run.shift_mm for run in self.runs], axis=0).tolist()
        return x, y, z


def look(corpus: Corpus, most: int = 60) -> tuple[list[DatasetBrain], Sides]:
    """Mean brain of every dataset, by name, from at most `most` runs of each; and what their sides say."""
    index = corpus.index
    first = np.flatnonzero(index["start_frame"] == 0)
    datasets = index["dataset"][first]
    found, vectors, chosen = [], [], {}
    for name in sorted(set(datasets)):
        rows = first[datasets == name]
        chosen[name] = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]
        mean, shifts = np.zeros(GRID_SHAPE), []
        for row in chosen[name]:
            image = mean_image(corpus, int(row))
            mean += image
            vectors.append(asymmetry_of(image, corpus.mask))
            shifts.append(shift_of(image, corpus.mask))
        found.append((name, (mean / len(shifts)).astype(np.float32), shifts, len(rows)))
    sides = compare_sides(np.stack(vectors))
    scores = iter(sides.scores.tolist())
    out = []
    for name, image, shifts, total in found:
        names = [str(index["key"][row]).rsplit("__", 1)[0] for row in chosen[name]]
        runs = [RunBrain(run, name, moved, next(scores)) for run, moved in zip(names, shifts, strict=True)]
        out.append(DatasetBrain(name, image, runs, total))
    return out, sides


def mean_image(corpus: Corpus, row: int) -> np.ndarray:
    """Temporal mean of the run of a sample over its mean in the brain: float32 (96, 96, 96), 0 outside the mask.

    Raises
    ------
    CorpusError
        The sample's statistics are not what the index says.
    """
    unit = float(corpus.index["unit"][row])
    scale, stats = (_member(corpus, row, stem).astype(np.float64) for stem in ("scale", "stats"))
    image = np.zeros(GRID_SHAPE, dtype=np.float32)
    image[corpus.mask] = unit * (scale[0] - stats[0] * stats[1])  # offset less (offset - mean) / sd, times sd
    inside = brain_mask(dilated=False) & corpus.mask
    level = float(image[inside if inside.any() else corpus.mask].mean())
    return image / np.float32(level) if level > 0 else image


def _member(corpus: Corpus, row: int, stem: str) -> np.ndarray:
    """A float16 (2, V) member of a sample, its checksum compared."""
    index = corpus.index
    path, size = corpus.shard_path(index["shard"][row]), int(index[f"{stem}_bytes"][row])
    try:
        with path.open("rb") as file:
            file.seek(int(index[f"{stem}_offset"][row]))
            data = file.read(size)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); restore it or build the corpus again") from error
    if len(data) != size or xxhash.xxh3_64_intdigest(data) != int(index[f"{stem}_xxh3"][row]):
        raise CorpusError(f"{path}: {stem} of {index['key'][row]} is damaged; restore it or build the corpus again")
    return np.frombuffer(data, dtype=np.float16, offset=NPY_HEADER_BYTES).reshape(2, -1)
