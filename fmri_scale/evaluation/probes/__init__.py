"""Probes: small models on frozen inputs, with settings chosen on validation groups only."""

from fmri_scale.evaluation.probes.attentive import AttentiveProbe
from fmri_scale.evaluation.probes.choice import (
    Chosen,
    Fitted,
    Probe,
    Problem,
    Tuner,
    check_rows,
    choose_and_fit,
    unit_losses,
    unit_means,
)
from fmri_scale.evaluation.probes.constant import ConstantProbe
from fmri_scale.evaluation.probes.linear import LinearProbe
from fmri_scale.evaluation.probes.neighbours import NeighbourProbe

__all__ = [
    "AttentiveProbe",
    "Chosen",
    "ConstantProbe",
    "Fitted",
    "LinearProbe",
    "NeighbourProbe",
    "Probe",
    "Problem",
    "Tuner",
    "check_rows",
    "choose_and_fit",
    "unit_losses",
    "unit_means",
]
