"""Re-identification: is a person's other session nearer than those of other people? No head is trained.

Vectors of sessions (or runs) are the mean over their clips, standardised by the vectors of the training people alone;
queries and gallery are the test people. Connectivity is compared in the same way (connectome fingerprinting, Finn et
al. 2015). Nothing is ever compared with a recording of its own run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.preprocessing import StandardScaler

from fmri_scale.errors import DataError
from fmri_scale.evaluation.compare import Predictions, Representation, Units, make_part
from fmri_scale.evaluation.metrics import RANKING, precision_metric, top_k_metric
from fmri_scale.evaluation.probes import Problem, unit_means
from fmri_scale.evaluation.ranking import Identity, Ranks, chance_precision, chance_top_k, reidentify
from fmri_scale.evaluation.scores import predictions_frame, score_table
from fmri_scale.evaluation.sealed import FIT, TEST, VAL, FinalEvaluation, Part, SealedTest, groups_tested
from fmri_scale.evaluation.splits import Fold
from fmri_scale.evaluation.tasks.division import BETWEEN_PEOPLE, make_splits
from fmri_scale.evaluation.tasks.methods import Sources, baseline_methods, read_sources
from fmri_scale.evaluation.tasks.result import TaskResult
from fmri_scale.evaluation.tasks.schema import TaskConfig


@dataclass(frozen=True)
class _Line:
    name: str
    representation: Callable[[int], Representation]
    baseline: bool


def reidentify_task(task: TaskConfig, final: bool, book: Path | None) -> TaskResult:
    """Run a reidentification task; parameters as of `predict`."""
    if task.split.group not in BETWEEN_PEOPLE:
        raise DataError(f"split.group={task.split.group}: reidentification divides people; use family or subject")
    sources = read_sources(task)
    table = sources.units
    families = table.families(task.target)
    groups = table.groups(task.split.group, families)
    nothing = np.zeros(len(table.name), dtype=np.int64)
    units = Units(table.name, groups, table.entities.names("subject"), nothing, Problem(RANKING))
    splits = make_splits(task, table, groups, families, nothing)
    identity = Identity(*(table.entities.names(level) for level in ("subject", "session", "run")))
    lines = _lines(task, sources)
    ready = [
        (line, seed, _ready(line, seed, fold, units))
        for seed, split in splits.items()
        for fold in split.folds
        for line in lines
    ]
    hashes = "+".join(split.sha256 for split in splits.values())
    frozen = {"methods": [line.name for line in lines]}
    permission = FinalEvaluation(book, hashes, frozen, groups_tested(splits.values())) if final else None
    scores: dict[tuple[str, int], np.ndarray] = {}
    outcomes = []
    for line, seed, (scaler, val, test) in ready:
        part = test.open(permission) if permission else val
        queries, found = _rank(part, scaler, identity, task.target.across)
        held = scores.setdefault((line.name, seed), np.full((len(units), 2), np.nan))
        held[queries] = np.stack([found.rank, found.precision], axis=1)
        units.truth[queries] = found.gallery
        outcomes.append(found)
    predictions = Predictions(TEST if final else VAL, scores, {}, permission.openings if permission else 0)
    metrics = [*(top_k_metric(k) for k in task.scoring.top_k), precision_metric()]
    names = {line.name: line.baseline for line in lines}
    chance = _chance(outcomes, task.scoring.top_k)
    result = score_table(predictions, names, units, metrics, task.scoring.draws, task.scoring.level, chance)
    return TaskResult(task, result, predictions_frame(predictions, units), splits, {}, table.notes)


def _lines(task: TaskConfig, sources: Sources) -> list[_Line]:
    lines = [_Line(s.name, s.representation(sources.units), s.baseline) for s in sources.features if not s.tokens]
    for method in baseline_methods(task, sources):
        # A tangent projection is part of its probe, and there is no probe here.
        if "tangent" not in method.name:
            lines.append(_Line(method.name, method.representation, True))
    return lines


def _ready(line: _Line, seed: int, fold: Fold, units: Units) -> tuple[StandardScaler, Part, SealedTest]:
    representation = line.representation(seed)
    fit = make_part(FIT, representation, units, fold.fit)
    scaler = StandardScaler().fit(unit_means(fit.inputs, fit.unit)[1])
    asked = sorted({group for choice in fold.choices for group in choice.val})
    val = make_part(VAL, representation, units, asked)
    return scaler, val, SealedTest(fold.name, lambda: make_part(TEST, representation, units, fold.test))


def _rank(part: Part, scaler: StandardScaler, identity: Identity, across: str) -> tuple[np.ndarray, Ranks]:
    unit, vectors = unit_means(part.inputs, part.unit)
    here = Identity(identity.subject[unit], identity.session[unit], identity.run[unit])
    queries, found = reidentify(scaler.transform(vectors), here, across)
    return unit[queries], found


def _chance(outcomes: list[Ranks], top_k: list[int]) -> dict[str, float]:
    every = Ranks(*(np.concatenate(column) for column in zip(*outcomes, strict=True)))
    return {f"top{k}": chance_top_k(every, k) for k in top_k} | {"map": chance_precision(every)}
