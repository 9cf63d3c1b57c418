"""Targets from a table (TSV, CSV, parquet): typed, joined by dataset, subject, session and run, missing values named.

In: a table with a row a subject (or session, or run) and a column to predict. Out: a `Target`, and its values for
named rows. Everything is read as text first, so `001` stays `001` and a class called `NA` is not lost unless it is
said to be missing. Nothing is imputed: who has no value is left out, counted and named.
"""

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fmri_scale.errors import DataError
from fmri_scale.evaluation.entities import PREFIXES, Entities, bare, refuse_alike
from fmri_scale.evaluation.metrics import CLASSIFICATION, REGRESSION

COLUMN_NAMES = {
    "dataset": ("dataset",),
    "subject": ("participant_id", "subject", "subject_id", "sub"),
    "session": ("session_id", "session", "ses"),
    "task": ("task", "task_name"),
    "run": ("run", "run_id"),
}
"Names under which a table may hold an entity; the first one found is used."

MISSING = ("", "n/a", "N/A", "NA", "nan", "NaN", "null", "None")
"Texts that say that a value is not there; a task can add its own codes, such as -999."

_WHOLE = re.compile(r"-?[0-9]+\.0+")

NAMED = 5
"Names printed in a message before `and N more`."


@dataclass(frozen=True)
class Target:
    """A column of a table, ready to be joined.

    Attributes
    ----------
    source
        File and column, for messages.
    kind
        classification or regression.
    keys
        Entities by which rows are told apart, those of COLUMN_NAMES that the table has.
    values
        Text (a class) or number by key; None where missing.
    """

    source: str
    kind: str
    keys: tuple[str, ...]
    values: Mapping[tuple[str, ...], str | float | None]

    @property
    def missing(self) -> list[str]:
        """Names of the rows without a value."""
        return sorted("/".join(key) for key, value in self.values.items() if value is None)

    def of(self, rows: Entities) -> list[str | float | None]:
        """Value of each row; None where the table has none.

        Raises
        ------
        DataError
            No row is in the table, or one row of the table would be that of people of two datasets.
        """
        wanted = _wanted_keys(self.keys, rows, self.values, self.source)
        if wanted and not any(key in self.values for key in wanted):
            theirs, ours = next(iter(self.values)), wanted[0]
            raise DataError(
                f"{self.source}: no row of the features is in it; it has {len(self.values)} rows such as "
                f"{'/'.join(theirs)!r}, the features {'/'.join(ours)!r} ({', '.join(self.keys)}); "
                "names must be equal as text, leading zeros included"
            )
        return [self.values.get(key) for key in wanted]


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a TSV, CSV or parquet table with every value as text, stripped.

    Raises
    ------
    DataError
        The file is missing, of another kind, or no table.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            frame = pd.DataFrame({name: _as_text(table.column(name)) for name in table.column_names}, dtype=object)
        elif path.suffix in (".tsv", ".csv"):
            separator = "\t" if path.suffix == ".tsv" else ","
            # In a TSV a quote is a character: one that opens a cell must not swallow the rows up to the next.
            quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
            frame = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", quoting=quoting
            )
        else:
            raise DataError(f"{path}: a table must end in .tsv, .csv or .parquet")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as a table: {str(error).splitlines()[0]}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"{path}: rows have more cells than the header; name them all, or remove the last separator")
    clean = _unquoted if path.suffix == ".tsv" else str.strip
    frame.columns = [clean(str(name)) for name in frame.columns]
    twice = sorted(set(frame.columns[frame.columns.duplicated()]))
    if twice:
        raise DataError(f"{path}: two columns are named {twice[0]!r}; rename one")
    return frame.map(lambda value: clean(str(value)))


def read_target(path: str | Path, column: str, kind: str, missing: Sequence[str] = ()) -> Target:
    """Read the column to predict.

    Parameters
    ----------
    path, column
        Table, and the name of the column.
    kind
        classification (values are labels) or regression (values are numbers).
    missing
        Further texts that mean that a value is missing.

    Raises
    ------
    DataError
        The column is missing, a value is no number, or one key has two values.
    """
    if kind not in (CLASSIFICATION, REGRESSION):
        raise DataError(f"kind {kind!r}: expected {CLASSIFICATION} or {REGRESSION}")
    frame = read_table(path)
    if column not in frame.columns:
        raise DataError(f"{path}: no column {column!r}; it has {', '.join(frame.columns)}")
    source = f"{path}, column {column}"
    keys = key_columns(frame, path)
    values: dict[tuple[str, ...], str | float | None] = {}
    for key, text in zip(row_keys(frame, keys), frame[column], strict=True):
        value = _parse(text, kind, {*MISSING, *missing}, source, key)
        if key in values and values[key] != value:
            raise DataError(f"{source}: {'/'.join(key)} has two values, {values[key]!r} and {value!r}; keep one")
        values[key] = value
    if not any(value is not None for value in values.values()):
        raise DataError(f"{source}: all {len(values)} values are missing")
    return Target(source, kind, tuple(keys), values)


def read_families(path: str | Path, columns: Sequence[str], rows: Entities) -> list[np.ndarray]:
    """Family names of rows from columns of a table: for each column an object (n,), "" where unknown.

    Raises
    ------
    DataError
        A column is missing, somebody is in two families, or the table does not tell people of two datasets apart.
    """
    frame = read_table(path)
    for column in columns:
        if column not in frame.columns:
            raise DataError(f"{path}: no column {column!r} (family); it has {', '.join(frame.columns)}")
    keys = {name: found for name, found in key_columns(frame, path).items() if name in ("dataset", "subject")}
    table_keys = row_keys(frame, keys)
    wanted = _wanted_keys(tuple(keys), rows, set(table_keys), str(path))
    found = []
    for column in columns:
        family: dict[tuple[str, ...], str] = {}
        for key, value in zip(table_keys, frame[column], strict=True):
            name = "" if value in MISSING else value
            if family.setdefault(key, name) != name:
                raise DataError(f"{path}, column {column}: {'/'.join(key)} is in two families, {family[key]}, {name}")
        found.append(np.array([family.get(key, "") for key in wanted], dtype=object))
    return found


def classes_of(values: Sequence[str | float | None]) -> list[str]:
    """Classes in their natural order: numbers by size, else by the alphabet."""
    labels = {str(value) for value in values if value is not None}
    return sorted(labels, key=lambda label: (0, float(label), label) if _is_number(label) else (1, 0.0, label))


def name_some(names: Sequence[str]) -> str:
    """List the first few names and count the rest."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def key_columns(frame: pd.DataFrame, path: str | Path) -> dict[str, str]:
    """Entity to the column that holds it, for the entities that a table has."""
    found = {name: next((c for c in choices if c in frame.columns), None) for name, choices in COLUMN_NAMES.items()}
    if found["subject"] is None:
        raise DataError(f"{path}: no column that names the subject; expected one of {COLUMN_NAMES['subject']}")
    return {name: column for name, column in found.items() if column is not None}


def row_keys(frame: pd.DataFrame, keys: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Bare entity names of each row of a table."""
    columns = [
        [bare(value, name) if name in PREFIXES else value for value in frame[column]] for name, column in keys.items()
    ]
    return list(zip(*columns, strict=True))


def _wanted_keys(
    keys: Sequence[str], rows: Entities, known: Collection[tuple[str, ...]], source: str
) -> list[tuple[str, ...]]:
    """Key of each row; DataError where a table without datasets would speak of people of two."""
    wanted = list(zip(*(getattr(rows, name) for name in keys), strict=True))
    if "dataset" not in keys:
        refuse_alike(wanted, rows.dataset, known, source, "people", "add a column dataset")
    return wanted


def _parse(text: str, kind: str, missing: set[str], source: str, key: tuple[str, ...]) -> str | float | None:
    if text in missing:
        return None
    if kind == CLASSIFICATION:
        # Spreadsheets and parquet write class 1 as 1.0 as soon as one value of the column is missing.
        return text.partition(".")[0] if _WHOLE.fullmatch(text) else text
    if not _is_number(text):
        raise DataError(
            f"{source}: {'/'.join(key)} has {text!r}, which is no finite number; mend it or list it as missing"
        )
    return float(text)


def _is_number(text: str) -> bool:
    if "_" in text:  # Python reads 1_2 as 12
        return False
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _unquoted(text: str) -> str:
    """A cell of a TSV, stripped; without its quotes where it stands in a pair of them, as R writes text."""
    text = text.strip()
    return text[1:-1].replace('""', '"').strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _as_text(column: pa.ChunkedArray) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]
