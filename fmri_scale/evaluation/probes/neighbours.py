"""k nearest neighbours by cosine on standardised vectors, k chosen on validation: what is near, linear or not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from fmri_scale.evaluation.probes.choice import Fitted, Problem
from fmri_scale.evaluation.probes.linear import Transform
from fmri_scale.evaluation.sealed import Part


class NeighbourProbe:
    """Vote or mean of the k nearest rows; a k above the number of rows takes them all."""

    name = "knn"
    settings: tuple[Any, ...] = (50, 20, 10, 5, 3, 1)

    def fit(self, part: Part, problem: Problem, settings: Sequence[Any], seed: int) -> list[Fitted]:
        """Fit one model a k; standardisation is shared."""
        transform = Transform()
        vectors = transform.fit(part.inputs, part.weight)
        kind = KNeighborsClassifier if problem.is_class else KNeighborsRegressor
        models = [kind(min(k, len(vectors)), metric="cosine", algorithm="brute") for k in settings]
        return [_Neighbours(transform, model.fit(vectors, part.truth), problem) for model in models]


class _Neighbours:
    def __init__(self, transform: Transform, model: Any, problem: Problem) -> None:
        self._transform, self._model, self._problem = transform, model, problem

    def scores(self, inputs: Any) -> np.ndarray:
        vectors = self._transform(inputs)
        if not self._problem.is_class:
            return np.asarray(self._model.predict(vectors), dtype=np.float64)
        out = np.zeros((len(vectors), len(self._problem.classes)))
        out[:, self._model.classes_] = self._model.predict_proba(vectors)
        return out
