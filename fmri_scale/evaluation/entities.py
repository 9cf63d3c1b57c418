"""Who and what a row is about: dataset, subject, session, task, run; and who belongs together.

Names are compared as text, without the BIDS prefixes (`sub-01` and `01` are one subject; `01` and `1` are two).
People of different datasets are different people. A group is what must never be divided between training and test:
a family where one is known, else a subject.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from fmri_scale.errors import DataError

LEVELS = ("subject", "session", "run", "block")
"What can be predicted, from coarse to fine; a block is a stretch of a run with one label."

PREFIXES = {"subject": "sub-", "session": "ses-", "task": "task-", "run": "run-"}

_DEPTH = {"subject": ("subject",), "session": ("subject", "session"), "run": ("subject", "session", "task", "run")}


@dataclass(frozen=True)
class Entities:
    """Entities of n rows, each an object array (n,) of text, "" where unknown."""

    dataset: np.ndarray
    subject: np.ndarray
    session: np.ndarray
    task: np.ndarray
    run: np.ndarray

    def __len__(self) -> int:
        return len(self.subject)

    def take(self, rows: np.ndarray) -> "Entities":
        """Entities of some rows."""
        return Entities(*(getattr(self, field.name)[rows] for field in fields(self)))

    def names(self, level: str) -> np.ndarray:
        """Name of the subject, session or run of each row, such as `abide/sub-01/ses-2`; object (n,)."""
        columns = [(PREFIXES[name], getattr(self, name)) for name in _DEPTH[level]]
        names = [
            "/".join([dataset, *(prefix + values[i] for prefix, values in columns if values[i])])
            for i, dataset in enumerate(self.dataset)
        ]
        return np.array(names, dtype=object)


def entities(num_rows: int, **columns: Sequence[str]) -> Entities:
    """Make entities from columns of text; those not given are unknown.

    Raises
    ------
    DataError
        A column has another length, or a subject has no name.
    """
    made = {}
    for field in fields(Entities):
        values = columns.get(field.name)
        made[field.name] = np.array([""] * num_rows if values is None else [str(v) for v in values], dtype=object)
        if len(made[field.name]) != num_rows:
            raise DataError(f"{len(made[field.name])} values of {field.name} for {num_rows} rows")
        if field.name in PREFIXES:
            made[field.name] = np.array([bare(v, field.name) for v in made[field.name]], dtype=object)
    nameless = int(np.count_nonzero(made["subject"] == ""))
    if nameless:
        raise DataError(f"{nameless} of {num_rows} rows name no subject; a split by subject is not possible")
    return Entities(**made)


def entities_of_labels(labels: Sequence[str]) -> Entities:
    """Read entities from names of runs as corpora and features have them, `DATASET__sub-01_ses-2_task-rest_run-1`.

    What tells apart files of one run number (acq-, dir-, echo-, ...) becomes part of the run's name.

    Raises
    ------
    DataError
        A name has no dataset or no subject.
    """
    columns: dict[str, list[str]] = {field.name: [] for field in fields(Entities)}
    for label in labels:
        dataset, found, rest = label.partition("__sub-")
        if not found:
            raise DataError(f"run named {label!r}: expected DATASET__sub-NAME_..., as fmri-shards and features name it")
        parts = dict(re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9-]+)", f"sub-{rest}"))
        more = [f"{name}-{value}" for name, value in parts.items() if name not in ("sub", "ses", "task", "run")]
        values = {"dataset": dataset, "subject": parts["sub"], "session": parts.get("ses", "")}
        values |= {"task": parts.get("task", ""), "run": "_".join([parts.get("run", ""), *more]).strip("_")}
        for name, value in values.items():
            columns[name].append(value)
    return entities(len(labels), **columns)


def bare(value: str, entity: str) -> str:
    """Return a name without its BIDS prefix."""
    return value.strip().removeprefix(PREFIXES[entity])


def refuse_alike(
    keys: Sequence[tuple[str, ...]],
    dataset: np.ndarray,
    known: Collection[tuple[str, ...]],
    source: str,
    what: str,
    remedy: str,
) -> None:
    """Refuse one answer for rows of several datasets.

    Parameters
    ----------
    keys, dataset
        Of each row; keys say nothing of the dataset.
    known
        Keys that have an answer in `source`; the others are left out.
    what, remedy
        What the keys name, and what to do, for the message.

    Raises
    ------
    DataError
        Rows of two datasets ask under one known key.
    """
    datasets: dict[tuple[str, ...], set[str]] = {}
    for key, name in zip(keys, dataset, strict=True):
        if key in known:
            datasets.setdefault(key, set()).add(name)
    shared = {key: sorted(names) for key, names in datasets.items() if len(names) > 1}
    if shared:
        key, names = next(iter(shared.items()))
        raise DataError(
            f"{source}: names {what} of datasets {' and '.join(names)} alike, such as "
            f"{'/'.join(filter(None, key))!r} ({len(shared)} in all); {remedy}"
        )


def groups_of(subjects: np.ndarray, families: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Name the group of each row: people linked by any family name, directly or through others.

    Parameters
    ----------
    subjects
        object (n,): qualified names of subjects.
    families
        Columns object (n,) of family names, "" where unknown; several (mother, father) link half-siblings too.

    Returns
    -------
    object (n,): the first subject's name of each group.
    """
    names, subject_of = np.unique(subjects.astype(str), return_inverse=True)
    links, offset = [], len(names)
    for column in families:
        known = column != ""
        family_names, family_of = np.unique(column[known].astype(str), return_inverse=True)
        links.append((subject_of[known], offset + family_of))
        offset += len(family_names)
    rows = np.concatenate([np.arange(0), *(a for a, _ in links)]).astype(int)
    columns = np.concatenate([np.arange(0), *(b for _, b in links)]).astype(int)
    graph = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(offset, offset))
    component = csgraph.connected_components(graph, directed=False)[1][: len(names)]
    _, first = np.unique(component, return_index=True)
    name_of = dict(zip(component[first], names[first], strict=True))
    return np.array([name_of[component[i]] for i in subject_of], dtype=object)
