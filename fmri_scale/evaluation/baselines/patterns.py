"""Baselines on activity itself: the mean of region or voxel series over a unit's frames; and a look at nothing."""

from collections.abc import Sequence

import numpy as np

from fmri_scale.evaluation.baselines.series import RunSeries, Stretch, cut
from fmri_scale.evaluation.compare import Method, Representation
from fmri_scale.evaluation.probes import ConstantProbe, LinearProbe


def pattern_method(
    name: str, series: RunSeries, stretches: Sequence[Sequence[Stretch]], balanced: bool = False
) -> Method:
    """Mean activity of each region (or voxel) over a unit, then a linear probe; for task states.

    Parameters
    ----------
    name
        As printed.
    series
        Cleaned by run, so that runs of other gain and offset compare.
    stretches
        For each unit its parts of runs.
    """
    vectors = np.stack([cut(series, parts).mean(axis=0) for parts in stretches])
    representation = Representation(np.arange(len(vectors)), lambda rows: vectors[rows])
    return Method(name, lambda seed: representation, LinearProbe(balanced=balanced), baseline=True)


def constant_method(num_units: int, is_class: bool) -> Method:
    """The commonest class or the mean value of the training units."""
    representation = Representation(np.arange(num_units), lambda rows: np.zeros((len(rows), 1)))
    return Method("majority" if is_class else "mean", lambda seed: representation, ConstantProbe(), baseline=True)
