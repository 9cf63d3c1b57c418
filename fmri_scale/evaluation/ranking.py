"""Retrieval: where in a gallery, ordered by similarity, the right one stands. Images by fMRI, people by other sessions.

In: vectors. Out: for each query its rank (1 is best), or its average precision, and what guessing would give. A query
is never compared with what it shares a run with: clips of one run are alike for reasons that have nothing to do with
the person. Rank and precision are computed with ties counted against the query.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fmri_scale.errors import DataError


class Ranks(NamedTuple):
    """Outcome of n queries.

    Attributes
    ----------
    rank
        float64 (n,): place of the first right one.
    precision
        float64 (n,): average precision over all right ones.
    gallery, right
        int64 (n,): candidates, and how many of them are right.
    """

    rank: np.ndarray
    precision: np.ndarray
    gallery: np.ndarray
    right: np.ndarray


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosine similarity of rows, float64 (n, m); 0 where a vector is 0."""
    return _unit_rows(one) @ _unit_rows(other).T


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros(rows.shape), where=length > 0)


def ranks(similarity: np.ndarray, right: np.ndarray, allowed: np.ndarray) -> Ranks:
    """Rank galleries.

    Parameters
    ----------
    similarity
        float64 (n, m) of queries and candidates.
    right, allowed
        bool (n, m): the candidate is what the query asks for; it is in the query's gallery.

    Raises
    ------
    DataError
        A query has nothing right in its gallery.
    """
    right = right & allowed
    if not right.any(axis=1).all():
        raise DataError(
            f"{int((~right.any(axis=1)).sum())} of {len(right)} queries have no right answer in the gallery"
        )
    # Among equals the wrong ones come first: a constant vector finds nothing.
    order = np.lexsort((right, -np.where(allowed, similarity, -np.inf)), axis=1)
    hits = np.take_along_axis(right, order, axis=1)
    place = np.arange(1, right.shape[1] + 1)
    precision = np.where(hits, hits.cumsum(axis=1) / place, 0.0).sum(axis=1) / hits.sum(axis=1)
    return Ranks(hits.argmax(axis=1) + 1.0, precision, allowed.sum(axis=1), right.sum(axis=1))


def retrieve_images(predicted: np.ndarray, image: np.ndarray, vectors: np.ndarray) -> Ranks:
    """Find the image that each unit saw among all images that any of these units saw.

    Parameters
    ----------
    predicted
        float64 (n, D): embeddings predicted from fMRI.
    image
        int64 (n,): row of `vectors` that each unit saw.
    vectors
        float64 (images, D), centred like the predictions.
    """
    gallery = np.unique(image)
    similarity = cosine(predicted, vectors[gallery])
    right = image[:, None] == gallery[None, :]
    return ranks(similarity, right, np.ones_like(right))


@dataclass(frozen=True)
class Identity:
    """Whose each of n vectors is and where it was recorded; object (n,) qualified names."""

    subject: np.ndarray
    session: np.ndarray
    run: np.ndarray


def reidentify(vectors: np.ndarray, identity: Identity, across: str) -> tuple[np.ndarray, Ranks]:
    """Find each person's other recordings among those of everybody.

    Every vector is a query in turn. Its gallery is every vector of another session (`across="session"`) or run; of its
    own person, those of its own session (run) are left out, never counted as right or wrong.

    Returns
    -------
    queries
        int64: the vectors that have a recording elsewhere; others cannot be found and are no queries.
    ranks
        Theirs.

    Raises
    ------
    DataError
        Nobody was recorded twice.
    """
    where = identity.session if across == "session" else identity.run
    same_person = identity.subject[:, None] == identity.subject[None, :]
    same_place = where[:, None] == where[None, :]
    same_run = identity.run[:, None] == identity.run[None, :]
    allowed = ~(same_person & same_place) & ~same_run
    right = same_person & allowed
    queries = np.flatnonzero(right.any(axis=1))
    if not len(queries):
        raise DataError(f"nobody has recordings in two {across}s; reidentification across {across}s is not possible")
    similarity = cosine(vectors, vectors)
    return queries, ranks(similarity[queries], right[queries], allowed[queries])


def chance_top_k(found: Ranks, k: int) -> float:
    """Expected share of queries with a right one among the first k of a random order."""
    shares = [
        1 - np.prod([(m - r - i) / (m - i) for i in range(min(k, m))])
        for m, r in zip(found.gallery.tolist(), found.right.tolist(), strict=True)
    ]
    return float(np.mean(shares))


def chance_precision(found: Ranks) -> float:
    """Expected average precision of random orders: mean over k of the expected precision at the k-th right one."""
    values = [_expected_precision(m, r) for m, r in zip(found.gallery.tolist(), found.right.tolist(), strict=True)]
    return float(np.mean(values))


def _expected_precision(size: int, right: int) -> float:
    """Average precision of a random order of `size` with `right` right ones.

    A given place holds a right one with probability r / m; the places before it then hold (r - 1) / (m - 1) of theirs.
    """
    if size == 1:
        return 1.0
    place = np.arange(1, size + 1)
    before = (place - 1) * (right - 1) / (size - 1)
    return float(((1 + before) / place).mean())
