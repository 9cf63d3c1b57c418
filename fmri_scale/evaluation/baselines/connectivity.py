"""Functional-connectivity baseline: the connectome of a unit's region series, then a linear probe.

The connectome is nilearn's (Ledoit-Wolf covariance): correlation, partial correlation, or tangent-space projection,
whose reference is fitted on the training units of each fold alone. It is the baseline that published foundation models
often fail to beat on traits, so it stands in every table.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nilearn.connectome import ConnectivityMeasure

from fmri_scale.errors import DataError
from fmri_scale.evaluation.baselines.series import MIN_FRAMES, RunSeries, Stretch, cut
from fmri_scale.evaluation.compare import Method, Representation
from fmri_scale.evaluation.probes import LinearProbe

KINDS = ("correlation", "partial correlation", "tangent")
"Connectomes by nilearn's names."


def connectivity_method(
    kind: str, series: RunSeries, stretches: Sequence[Sequence[Stretch]], balanced: bool = False
) -> Method:
    """Make the baseline.

    Parameters
    ----------
    kind
        One of KINDS.
    series
        Of the regions.
    stretches
        For each unit the parts of runs that belong to it; a unit's series is all of them, one after the other.

    Raises
    ------
    DataError
        A unit has too few frames.
    """
    held = [cut(series, parts) for parts in stretches]
    short = [i for i, item in enumerate(held) if len(item) < MIN_FRAMES]
    if short:
        raise DataError(f"{len(short)} units have fewer than {MIN_FRAMES} frames; a connectome needs more")
    name = f"connectivity ({kind})"
    if kind == "tangent":
        inputs: Any = _Listed(held)
        probe = LinearProbe(TangentSpace, balanced)
    else:  # fitted on nothing, so one pass serves all folds
        inputs, probe = connectomes(kind, held), LinearProbe(balanced=balanced)
    representation = Representation(np.arange(len(held)), lambda rows: inputs[rows])
    return Method(name, lambda seed: representation, probe, baseline=True)


def connectomes(kind: str, series: Sequence[np.ndarray]) -> np.ndarray:
    """Connectome of each of U series (T, R) by itself, float64 (U, R * (R - 1) / 2)."""
    return _measure(kind).fit_transform(list(series))


def _measure(kind: str) -> ConnectivityMeasure:
    # In tangent space the diagonal (a region's variance against the mean) carries information; elsewhere it is 1.
    return ConnectivityMeasure(kind=kind, vectorize=True, discard_diagonal=kind != "tangent", standardize=False)


class TangentSpace:
    """nilearn's tangent-space connectome, which alone refuses to transform a single series."""

    def __init__(self) -> None:
        self._measure = _measure("tangent")

    def fit_transform(self, series: Sequence[np.ndarray]) -> np.ndarray:
        """Fit the reference on series (T, R) and return their vectors, float64 (U, R * (R + 1) / 2)."""
        return self._measure.fit_transform(list(series))

    def transform(self, series: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors of any series by the fitted reference; each depends on itself alone."""
        held = list(series)
        return self._measure.transform(held if len(held) > 1 else held * 2)[: len(held)]


class _Listed:
    """A list that takes an array of numbers as an index."""

    def __init__(self, items: list[np.ndarray]) -> None:
        self._items = items

    def __getitem__(self, rows: np.ndarray) -> list[np.ndarray]:
        return [self._items[row] for row in rows]
