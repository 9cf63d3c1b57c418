"""The baseline that looks at nothing: how often each class occurs, or the mean value, in the training units."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor

from fmri_scale.evaluation.probes.choice import Fitted, Problem
from fmri_scale.evaluation.sealed import Part


class ConstantProbe:
    """scikit-learn's dummy: class frequencies, so that its decision is the majority class; or the mean."""

    name = "constant"
    settings: tuple[Any, ...] = (None,)

    def fit(self, part: Part, problem: Problem, settings: Sequence[Any], seed: int) -> list[Fitted]:
        """Fit; there is nothing to set."""
        model = DummyClassifier(strategy="prior") if problem.is_class else DummyRegressor(strategy="mean")
        model.fit(np.zeros((len(part.truth), 1)), part.truth, sample_weight=part.weight)
        return [_Constant(model, problem) for _ in settings]


class _Constant:
    def __init__(self, model: Any, problem: Problem) -> None:
        if problem.is_class:
            self._score = np.zeros(len(problem.classes))
            self._score[model.classes_] = model.class_prior_
        else:
            self._score = np.asarray(model.constant_, dtype=np.float64).squeeze()

    def scores(self, inputs: Any) -> np.ndarray:
        return np.broadcast_to(self._score, (len(inputs), *self._score.shape)).copy()
