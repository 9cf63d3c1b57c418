"""Linear probe: standardise, then logistic regression or ridge, with the strength of L2 chosen on validation.

Mean and scale are taken over the rows fitted on, clips weighted so that every unit counts alike. Where there are more
columns than rows (connectomes have 13,000) the rows are first turned into their own span: with an L2 penalty the
solution lies in it (representer theorem), so the model is the same and the work is that of a matrix rows by rows.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from fmri_scale.evaluation.probes.choice import Fitted, Problem
from fmri_scale.evaluation.probes.target import row_weights
from fmri_scale.evaluation.sealed import Part
from fmri_scale.log import get_logger

PENALTIES = tuple(10.0**power for power in (6, 5, 4, 3, 2, 1, 0, -1, -2))
"Strengths of the L2 penalty, on standardised columns; C of logistic regression is its inverse."

MAX_ITERATIONS = 2000

_log = get_logger(__name__)


class LinearProbe:
    """Logistic regression or ridge on standardised inputs.

    Parameters
    ----------
    first
        Makes a scikit-learn transformer from the rows' inputs to vectors, fitted on the same rows as the rest (for
        instance tangent-space connectivity); None where inputs are vectors (R, C).
    balanced
        Weight classes so that each counts alike in the fit.
    """

    name = "linear"
    settings: tuple[Any, ...] = PENALTIES

    def __init__(self, first: Callable[[], Any] | None = None, balanced: bool = False) -> None:
        self._first, self._balanced = first, balanced

    def fit(self, part: Part, problem: Problem, settings: Sequence[Any], seed: int) -> list[Fitted]:
        """Fit one model a penalty; the transforms are shared."""
        weight = row_weights(part, problem, self._balanced)
        transform = Transform(self._first)
        vectors = transform.fit(part.inputs, part.weight)
        return [
            _Linear(transform, _model(vectors, part.truth, weight, problem, penalty), problem) for penalty in settings
        ]


class Transform:
    """Inputs to standardised vectors, rotated into the span of the fitted rows where that is smaller."""

    def __init__(self, first: Callable[[], Any] | None = None) -> None:
        self._first = first() if first else None
        self._scaler = StandardScaler()
        self._span: np.ndarray | None = None

    def fit(self, inputs: Any, weight: np.ndarray) -> np.ndarray:
        """Fit on rows and return their vectors, float64 (R, C)."""
        vectors = np.asarray(self._first.fit_transform(inputs) if self._first else inputs, dtype=np.float64)
        vectors = self._scaler.fit_transform(vectors, sample_weight=weight)
        if vectors.shape[1] > vectors.shape[0]:
            _, size, axes = np.linalg.svd(vectors, full_matrices=False)
            self._span = axes[size > size[0] * 1e-10].T if size[0] > 0 else axes[:1].T
            vectors = vectors @ self._span
        return vectors

    def __call__(self, inputs: Any) -> np.ndarray:
        """Vectors of any rows."""
        vectors = np.asarray(self._first.transform(inputs) if self._first else inputs, dtype=np.float64)
        vectors = self._scaler.transform(vectors)
        return vectors if self._span is None else vectors @ self._span

    def direction(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients (K, rotated) as weights (K, C) on the vectors before standardising."""
        turned = coefficients if self._span is None else coefficients @ self._span.T
        return turned / self._scaler.scale_


def _model(vectors: np.ndarray, truth: np.ndarray, weight: np.ndarray, problem: Problem, penalty: float) -> Any:
    if not problem.is_class:
        return Ridge(alpha=penalty).fit(vectors, truth, sample_weight=weight)
    model = LogisticRegression(C=1 / penalty, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(vectors, truth, sample_weight=weight)
    if any(issubclass(item.category, ConvergenceWarning) for item in caught):
        _log.warning("logistic regression with penalty %g stopped after %d iterations", penalty, MAX_ITERATIONS)
    return model


class _Linear:
    def __init__(self, transform: Transform, model: Any, problem: Problem) -> None:
        self._transform, self._model, self._problem = transform, model, problem

    def scores(self, inputs: Any) -> np.ndarray:
        vectors = self._transform(inputs)
        if not self._problem.is_class:
            return self._model.predict(vectors)
        out = np.zeros((len(vectors), len(self._problem.classes)))
        out[:, self._model.classes_] = self._model.predict_proba(vectors)
        return out

    def direction(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights float64 (K or 1, C) on the inputs as given, and the classes they stand for."""
        weights = self._transform.direction(np.atleast_2d(self._model.coef_))
        return weights, getattr(self._model, "classes_", np.array([0]))
