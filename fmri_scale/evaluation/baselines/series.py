"""Time series of atlas regions (or of voxels) of runs, from NIfTI through nilearn or from a corpus.

Out: for each run float32 (T, R), each column without its linear trend and with unit variance over the run. That is a
property of the run itself: nothing is fitted over subjects. An atlas in MNI152 space meets NIfTI runs by affine
(nilearn's NiftiLabelsMasker) and a corpus on the canonical grid (sharding.atlas). Columns are those of the atlas in
every run; those that an image does not reach are 0 throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker
from nilearn.signal import clean
from scipy import sparse

from fmri_scale.errors import DataError
from fmri_scale.evaluation.entities import Entities, entities_of_labels
from fmri_scale.evaluation.stored import entities_of_runs, stored_runs
from sharding.atlas import load_label_image_on_grid, region_labels
from sharding.atlas.labels import read_label_volume
from sharding.corpus import Corpus
from sharding.discover import RunSource, find_runs
from sharding.errors import NotASeriesError, ShardingError
from sharding.keys import run_label
from sharding.read import open_image
from sharding.timing import repetition_time

MIN_FRAMES = 4
"Fewest frames of a stretch from which a connectome is computed."


class Stretch(NamedTuple):
    """A part of a run: its number, and frames `start` to `stop` (None: to the end)."""

    run: int
    start: int = 0
    stop: int | None = None


class RunSeries(Protocol):
    """Series of R regions of a list of runs."""

    @property
    def entities(self) -> Entities:
        """Entities of the runs."""
        ...

    @property
    def names(self) -> np.ndarray:
        """Name of each run as features have it; object (runs,)."""
        ...

    def tr(self, run: int) -> float:
        """Spacing of a run's frames in s."""
        ...

    def series(self, run: int) -> np.ndarray:
        """Cleaned series of a run, float32 (T, R)."""
        ...


@dataclass(frozen=True)
class Band:
    """Frequencies kept, in Hz; 0 leaves that side open."""

    low: float = 0.0
    high: float = 0.0

    def clean(self, series: np.ndarray, tr: float, where: str) -> np.ndarray:
        """Detrend, filter and scale columns of (T, R); DataError where frames do not resolve the band."""
        for side, edge in (("from", self.low), ("to", self.high)):
            if edge and edge >= 0.5 / tr:
                raise DataError(
                    f"{where}: band {side} {edge:g} Hz, but frames of {tr:g} s reach {0.5 / tr:g} Hz; "
                    "lower baselines.band_hz"
                )
        cleaned = clean(
            series.astype(np.float64),
            detrend=True,
            standardize="zscore_sample",
            filter="butterworth" if self.low or self.high else False,
            high_pass=self.low or None,
            low_pass=self.high or None,
            t_r=tr,
        )
        return np.nan_to_num(cleaned).astype(np.float32)


class ImageSeries:
    """Series of NIfTI runs.

    Parameters
    ----------
    inputs
        Files, folders or tables, as `fmri-shards build` takes them.
    atlas
        Label image; None takes every voxel of the mask.
    mask
        Brain mask in the runs' space; needed without an atlas.
    band
        Frequencies kept.

    Attributes
    ----------
    labels
        int32 (R,): label of each column, all of the atlas; None for voxels.

    Raises
    ------
    DataError
        Neither atlas nor mask is given, one is missing, or the atlas is no label image.
    """

    def __init__(
        self,
        inputs: Sequence[str | Path],
        atlas: Path | None = None,
        mask: Path | None = None,
        band: Band | None = None,
    ) -> None:
        self._sources = series_only(find_runs(inputs)[0])
        labels = [run_label(source) for source in self._sources]
        self.names = np.array(labels, dtype=object)
        self.entities = entities_of_labels(labels)
        self._band = band or Band()
        if atlas is None and mask is None:
            raise DataError("series of voxels need a brain mask in the runs' space (baselines.mask)")
        if mask is not None and not mask.is_file():
            raise DataError(f"{mask}: no such file; baselines.mask is the brain mask of the runs")
        self.labels = _labels_of(atlas) if atlas is not None else None
        self._masker = (
            NiftiMasker(mask_img=str(mask), standardize="zscore_sample")
            if atlas is None
            else NiftiLabelsMasker(str(atlas), mask_img=str(mask) if mask else None, standardize="zscore_sample")
        )
        self._held: dict[int, np.ndarray] = {}

    def tr(self, run: int) -> float:
        """Spacing of a run's frames in s."""
        source = self._sources[run]
        return repetition_time(open_image(source.path), source.tr)[0]

    def series(self, run: int) -> np.ndarray:
        """Cleaned series of a run, float32 (T, R).

        Raises
        ------
        DataError
            The atlas or the mask does not reach the run, or the frames do not resolve the band.
        """
        if run not in self._held:
            path = self._sources[run].path
            try:
                signals = self._masker.fit_transform(str(path))
            except ValueError as error:
                why = str(error).splitlines()[0]
                raise DataError(f"{path}: atlas or mask do not fit the run ({why}); they must share a space") from error
            self._held[run] = self._band.clean(self._in_columns(signals), self.tr(run), str(path))
        return self._held[run]

    def _in_columns(self, signals: np.ndarray) -> np.ndarray:
        """Put regions of a run where they stand in every run: nilearn drops those that vanish on the run's grid."""
        if self.labels is None:
            return signals
        found = [int(self._masker.region_ids_[i]) for i in range(signals.shape[1])]
        placed = np.zeros((len(signals), len(self.labels)))
        placed[:, np.searchsorted(self.labels, found)] = signals
        return placed


def _labels_of(atlas: Path) -> np.ndarray:
    """Labels of an atlas, ascending, int32 (R,); DataError where it is no label image."""
    try:
        labels = region_labels(read_label_volume(atlas).values)
    except ShardingError as error:
        raise DataError(f"{error} (baselines.atlas)") from error
    if not len(labels):
        raise DataError(f"{atlas}: every voxel is 0; baselines.atlas needs a label image with a region or more")
    return labels


def series_only(sources: Sequence[RunSource]) -> list[RunSource]:
    """Leave out 3D images that were found in a folder, such as an atlas beside the runs."""
    kept = []
    for source in sources:
        try:
            open_image(source.path)
        except NotASeriesError:
            if not source.found:
                raise
        else:
            kept.append(source)
    return kept


class CorpusSeries:
    """Series of the runs of a corpus.

    Parameters
    ----------
    corpus
        Opened corpus.
    atlas
        Label image in MNI152 space.
    band
        Frequencies kept.

    Attributes
    ----------
    labels
        int32 (R,): label of each column, those that have a voxel in the corpus' mask.
    """

    def __init__(self, corpus: Corpus, atlas: Path, band: Band | None = None) -> None:
        self._runs = stored_runs(corpus)
        self._band = band or Band()
        self.names = np.array([run.name for run in self._runs], dtype=object)
        self.entities = entities_of_runs(self._runs)
        at_voxel = load_label_image_on_grid(atlas).ravel()[corpus.mask_index]
        self.labels = region_labels(at_voxel)
        if not len(self.labels):
            raise DataError(f"{atlas}: no label lies inside the mask of {corpus.path}")
        inside = np.flatnonzero(at_voxel)
        column = np.searchsorted(self.labels, at_voxel[inside])
        share = 1 / np.bincount(column)[column]
        shape = (corpus.num_voxels, len(self.labels))
        self._mean_over = sparse.csr_array((share.astype(np.float32), (inside, column)), shape=shape)
        self._held: dict[int, np.ndarray] = {}

    def tr(self, run: int) -> float:
        """Spacing of a run's frames in s."""
        return self._runs[run].tr

    def series(self, run: int) -> np.ndarray:
        """Cleaned series of a run, float32 (T, R)."""
        if run not in self._held:
            stored = self._runs[run]
            offset, step = stored.scale.astype(np.float32)
            # The offset is constant in time and goes with the trend; scaling the weights saves scaling the frames.
            weights = sparse.diags_array(step) @ self._mean_over
            codes = stored.segment(0, stored.num_frames).astype(np.float32)
            series = (weights.T @ codes.T).T + offset @ self._mean_over
            self._held[run] = self._band.clean(series * stored.unit, stored.tr, stored.name)
        return self._held[run]


def cut(series: RunSeries, stretches: Sequence[Stretch]) -> np.ndarray:
    """Join stretches of runs in time: float32 (T, R)."""
    return np.concatenate([series.series(part.run)[part.start : part.stop] for part in stretches])


def frames_between(start_s: float, stop_s: float, tr: float, num_frames: int) -> tuple[int, int]:
    """Frames whose time lies from start to stop; frame t is at t * tr."""
    first = max(0, int(np.ceil(start_s / tr - 1e-6)))
    return first, min(num_frames, int(np.ceil(stop_s / tr - 1e-6)))
