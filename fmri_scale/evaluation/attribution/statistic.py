"""From effects on features to evidence by region: how much each region helps a head, against permuted labels.

A head is linear, so a region's effect on a unit's scores is a product. The statistic of a region is the mean over held
out units of that effect in favour of the truth: for classes, the score of the true class against the others, each
class counting alike; for values, the covariance with the standardised truth. Under the null hypothesis of a region
its effects say nothing about the truth of people the head has not seen: their truth is permuted over groups, the head
stays. (Permuted heads would test the head as a whole: where one region carries it, all others look too good.)
p values are one-sided; `p_fwe` compares with the largest region of each permutation.

Shape suffixes: U units, R regions, E features, K classes (1 for values), P permutations.
"""

from dataclasses import dataclass

import numpy as np

from fmri_scale.evaluation.probes import LinearProbe, Problem
from fmri_scale.evaluation.sealed import Part, refuse_test


@dataclass(frozen=True)
class RegionEvidence:
    """Outcome for R regions.

    Attributes
    ----------
    statistic, z
        Of each region; z in standard deviations of its own null.
    p, p_fwe
        One-sided; p_fwe holds over all regions together.
    null
        float64 (P, R).
    """

    statistic: np.ndarray
    z: np.ndarray
    p: np.ndarray
    p_fwe: np.ndarray
    null: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """int64 (R,): 1 for the largest statistic."""
        return (-self.statistic).argsort(kind="stable").argsort(kind="stable") + 1


def contrast(truth: np.ndarray, problem: Problem) -> np.ndarray:
    """What is in favour of each unit's truth, float64 (U, K): sums to 0 over units."""
    if not problem.is_class:
        return ((truth - truth.mean()) / (truth.std() or 1.0))[:, None]
    is_class = np.eye(len(problem.classes))[truth]
    share = is_class.mean(axis=0)
    # Classes count alike, so that a shift of the scores that all units share favours nobody.
    return (is_class - share) / np.where(share > 0, share, 1.0) / len(problem.classes)


def linear_head(part: Part, problem: Problem, penalty: float, seed: int, balanced: bool = False) -> np.ndarray:
    """Weights (K, E) of a linear probe on features as they are; for two classes both rows, of opposite sign.

    `balanced` weights classes alike in the fit, as in the task.
    """
    refuse_test(part)
    (fitted,) = LinearProbe(balanced=balanced).fit(part, problem, [penalty], seed)
    weights, classes = fitted.direction()  # type: ignore[attr-defined]
    if not problem.is_class:
        return weights
    if len(weights) == 1:
        weights = np.concatenate([-weights, weights]) / 2
    head = np.zeros((len(problem.classes), weights.shape[1]))
    head[classes] = weights
    return head


def weigh_regions(
    effects_URE: np.ndarray,
    head_KE: np.ndarray,
    truth: np.ndarray,
    group: np.ndarray,
    problem: Problem,
    num_permutations: int,
    seed: int,
) -> RegionEvidence:
    """Compute statistic and null of units that the head was not fitted on.

    Parameters
    ----------
    head_KE
        Weights of the scores on features.
    truth, group
        (U,): of the units; object (U,) whose they are.
    """
    on_scores_URK = np.asarray(effects_URE @ head_KE.T)
    random = np.random.default_rng(seed)
    truths = [truth, *(permuted_groups(truth, group, random) for _ in range(num_permutations))]
    statistic = np.stack(
        [np.einsum("urk,uk->r", on_scores_URK, contrast(item, problem)) / len(truth) for item in truths]
    )
    return evidence(statistic[0], statistic[1:])


def evidence(observed: np.ndarray, null: np.ndarray) -> RegionEvidence:
    """Compare statistics (R,) with those of permutations (P, R); without any, or of no region, p and z are NaN."""
    if not null.size:
        nothing = np.full(len(observed), np.nan)
        return RegionEvidence(observed, nothing, nothing, nothing, null)
    sd = null.std(axis=0)
    z = np.divide(observed - null.mean(axis=0), sd, out=np.zeros(len(observed)), where=sd > 0)
    p = (1 + (null >= observed).sum(axis=0)) / (1 + len(null))
    p_fwe = (1 + (null.max(axis=1)[:, None] >= observed).sum(axis=0)) / (1 + len(null))
    return RegionEvidence(observed, z, p, p_fwe, null)


def permuted_groups(truth: np.ndarray, group: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Permute truth over groups: units of a group keep one another's company where groups have one unit each.

    Groups with several units exchange their whole lists with groups of as many units, so that what is alike within
    a group stays together.
    """
    out = truth.copy()
    names, which, sizes = np.unique(group.astype(str), return_inverse=True, return_counts=True)
    rows = [np.flatnonzero(which == number) for number in range(len(names))]
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        for target, source in zip(same, random.permutation(same), strict=True):
            out[rows[target]] = truth[rows[source]]
    return out
