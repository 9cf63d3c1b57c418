"""What a foundation model must beat: connectivity, region means and raw patterns by linear probes."""

from fmri_scale.evaluation.baselines.connectivity import KINDS, connectivity_method
from fmri_scale.evaluation.baselines.patterns import constant_method, pattern_method
from fmri_scale.evaluation.baselines.series import CorpusSeries, ImageSeries, RunSeries, Stretch

__all__ = [
    "KINDS",
    "CorpusSeries",
    "ImageSeries",
    "RunSeries",
    "Stretch",
    "connectivity_method",
    "constant_method",
    "pattern_method",
]
