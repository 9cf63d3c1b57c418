"""Retrieval of images from fMRI: ridge from features to image embeddings, then ranks in the gallery of held-out images.

Embeddings come as a table of vectors (of whatever image model). They are centred on the images of the training units
of each fold, so that what all images share counts for nothing. The gallery is every image that a test unit saw.
"""

from pathlib import Path

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.compare import Predictions, Units, compare
from fmri_scale.evaluation.metrics import RANKING, median_rank_metric, top_k_metric
from fmri_scale.evaluation.probes import Problem
from fmri_scale.evaluation.ranking import Ranks, chance_top_k, retrieve_images
from fmri_scale.evaluation.scores import predictions_frame, score_table
from fmri_scale.evaluation.splits import Fold, Split, num_folds
from fmri_scale.evaluation.tables import name_some, read_table
from fmri_scale.evaluation.tasks.division import make_splits
from fmri_scale.evaluation.tasks.methods import prediction_methods, read_sources
from fmri_scale.evaluation.tasks.result import TaskResult
from fmri_scale.evaluation.tasks.schema import TaskConfig


def retrieve(task: TaskConfig, final: bool, book: Path | None) -> TaskResult:
    """Run a retrieval task; parameters as of `predict`."""
    sources = read_sources(task)
    table = sources.units
    names, vectors = read_image_vectors(task.target.images)
    image = _numbers([str(label) for label in table.label], names, task.target.images)
    families = table.families(task.target)
    groups = table.groups(task.split.group, families)
    splits = make_splits(task, table, groups, families, vectors[image])
    methods = prediction_methods(task, sources)
    subjects = table.entities.names("subject")
    units = Units(table.name, groups, subjects, vectors[image], Problem("regression"))
    predictions = compare(methods, units, splits, final, book)
    ranked, gallery, chance = _rank_all(predictions, splits, units, image, vectors, task.scoring.top_k)
    ranked_units = Units(table.name, groups, subjects, gallery, Problem(RANKING))
    metrics = [*(top_k_metric(k) for k in task.scoring.top_k), median_rank_metric()]
    lines = {method.name: method.baseline for method in methods}
    scoring, folds = task.scoring, num_folds(splits)
    scores = score_table(ranked, lines, ranked_units, metrics, scoring.draws, scoring.level, chance, folds)
    notes = [*table.notes, *_shared_images(splits, groups, image)]
    return TaskResult(task, scores, predictions_frame(ranked, ranked_units), splits, predictions.settings, notes)


def read_image_vectors(path: str) -> tuple[list[str], np.ndarray]:
    """Read image embeddings: names, and float64 (images, D)."""
    frame = read_table(path)
    if "image" not in frame.columns or len(frame.columns) < 2:
        raise DataError(f"{path}: expected a column named image and one column a dimension")
    try:
        vectors = frame.drop(columns="image").to_numpy().astype(np.float64)
    except ValueError as error:
        raise DataError(f"{path}: embeddings must be numbers ({error})") from error
    names = frame["image"].tolist()
    if len(set(names)) < len(names) or not np.isfinite(vectors).all():
        raise DataError(f"{path}: an image is named twice, or an embedding is not finite")
    return names, vectors


def _numbers(wanted: list[str], names: list[str], path: str) -> np.ndarray:
    number = {name: i for i, name in enumerate(names)}
    lost = sorted(set(wanted) - set(number))
    if lost:
        raise DataError(f"{path}: {len(lost)} images of the events have no embedding: {name_some(lost)}")
    return np.array([number[name] for name in wanted], dtype=np.int64)


def _rank_all(
    predictions: Predictions,
    splits: dict[int, Split],
    units: Units,
    image: np.ndarray,
    vectors: np.ndarray,
    top_k: list[int],
) -> tuple[Predictions, np.ndarray, dict[str, float]]:
    """Ranks in place of predicted vectors, the size of each unit's gallery, and chance by metric."""
    gallery = np.zeros(len(units), dtype=np.int64)
    ranked: dict[tuple[str, int], np.ndarray] = {}
    outcomes: list[Ranks] = []
    for (method, seed), scores in predictions.scores.items():
        ranked[method, seed] = np.full((len(units), 2), np.nan)
        for fold in splits[seed].folds:
            rows = np.flatnonzero(predictions.scored(seed) & np.isin(units.group, list(_asked(fold, predictions.side))))
            if not len(rows):
                continue
            centre = units.truth[np.isin(units.group, list(fold.fit))].mean(axis=0)
            found = retrieve_images(scores[rows] - centre, image[rows], vectors - centre)
            ranked[method, seed][rows] = np.stack([found.rank, found.precision], axis=1)
            gallery[rows] = found.gallery
            outcomes.append(found)
    every = Ranks(*(np.concatenate(column) for column in zip(*outcomes, strict=True)))
    chance = {f"top{k}": chance_top_k(every, k) for k in top_k}
    chance["median_rank"] = float(np.median((every.gallery + 1) / 2))
    return Predictions(predictions.side, ranked, predictions.settings, predictions.openings), gallery, chance


def _asked(fold: Fold, side: str) -> set[str]:
    return set(fold.test) if side == "test" else {group for choice in fold.choices for group in choice.val}


def _shared_images(splits: dict[int, Split], groups: np.ndarray, image: np.ndarray) -> list[str]:
    shared = {
        int(i)
        for split in splits.values()
        for fold in split.folds
        for i in set(image[np.isin(groups, fold.fit)]) & set(image[np.isin(groups, fold.test)])
    }
    if not shared:
        return []
    return [f"{len(shared)} images were seen in training and in test; split.group=image tests on unseen images"]
