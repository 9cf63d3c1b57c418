"""What a network is trained to say: classes as they are, values standardised by the rows fitted on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fmri_scale.evaluation.probes.choice import Problem
from fmri_scale.evaluation.sealed import Part


@dataclass(frozen=True)
class TrainingTarget:
    """Turns outputs into losses and scores.

    Attributes
    ----------
    is_class
        Classes; else values.
    outputs
        Numbers that a network gives for a row: K classes, or 1.
    mean, scale
        Of the values of the rows fitted on, units counting alike; 0 and 1 for classes.
    """

    is_class: bool
    outputs: int
    mean: float
    scale: float

    @classmethod
    def of(cls, part: Part, problem: Problem) -> "TrainingTarget":
        """Fit mean and scale."""
        if problem.is_class:
            return cls(True, len(problem.classes), 0.0, 1.0)
        mean = float(np.average(part.truth, weights=part.weight))
        return cls(False, 1, mean, float(part.truth.std()) or 1.0)

    def truth(self, part: Part) -> Tensor:
        """int64 (R,) class numbers, or float32 (R,) standardised values."""
        if self.is_class:
            return torch.as_tensor(part.truth)
        return torch.as_tensor((part.truth - self.mean) / self.scale, dtype=torch.float32)

    def losses(self, output: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy or squared error of each row, `[R]`, of outputs `[R, outputs]`."""
        if self.is_class:
            return functional.cross_entropy(output, truth, reduction="none")
        return (output.squeeze(1) - truth).square()

    def scores(self, output: Tensor) -> np.ndarray:
        """Class probabilities float64 (R, K), or values float64 (R,)."""
        if self.is_class:
            return output.double().softmax(1).cpu().numpy()
        return (output.squeeze(1).double() * self.scale + self.mean).cpu().numpy()


def row_weights(part: Part, problem: Problem, balanced: bool) -> np.ndarray:
    """Weight of each row, float64 (R,): units count alike and, where `balanced`, classes too."""
    if not (problem.is_class and balanced):
        return part.weight
    counts = np.bincount(part.truth)
    return part.weight * len(part.truth) / (np.count_nonzero(counts) * counts[part.truth])
