"""A table of runs: TSV, CSV or parquet, a row a run; what a column says goes before what the file's name says."""

import csv
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sharding.discover.files import run_from_name
from sharding.discover.source import RunSource, dataset_name, label
from sharding.errors import InputError
from sharding.format import SPLITS

TABLE_ENDINGS = (".tsv", ".csv", ".parquet")
TABLE_COLUMNS = (
    "path", "subject", "session", "run", "task", "dataset", "family", "tr", "mask", "confounds", "split"
)  # fmt: skip
"Columns that are read; others are passed over."

PREFIXES = {"subject": "sub-", "session": "ses-", "task": "task-", "run": "run-"}
"What BIDS puts before a label, and participants.tsv writes out: sub-01 and 01 are one person."


def runs_in_table(table: Path, dataset: str | None = None) -> list[RunSource]:
    """Runs of a table; paths in it are relative to the table's folder.

    Raises
    ------
    InputError
        The table cannot be read, has no column path, or a row makes no sense.
    """
    rows = _read_table(table)
    if not rows or "path" not in rows[0]:
        raise InputError(f"{table}: no column path with a NIfTI file a row; columns read: {', '.join(TABLE_COLUMNS)}")
    return [_from_row(table, number, row, dataset) for number, row in enumerate(rows, start=1)]


def _from_row(table: Path, number: int, row: dict[str, str], dataset: str | None) -> RunSource:
    where = f"{table}, row {number}"
    if not row["path"]:
        raise InputError(f"{where}: path is empty")
    source = run_from_name(table.parent / row["path"], row.get("dataset") or dataset or dataset_name(table.parent))
    labels = {name: label(row[name].removeprefix(lead)) for name, lead in PREFIXES.items() if row.get(name)}
    if empty := next((name for name, text in labels.items() if not text), ""):
        raise InputError(f"{where}: {empty} is {row[empty]!r}; expected letters or digits")
    split = row.get("split", "")
    if split and split not in SPLITS:
        raise InputError(f"{where}: split is {split!r}; expected {', '.join(SPLITS)} or nothing")
    return replace(
        source,
        **labels,  # type: ignore[arg-type]
        family=row.get("family", ""),
        tr=_number(row.get("tr", ""), where),
        mask=table.parent / row["mask"] if row.get("mask") else None,
        confounds=table.parent / row["confounds"] if row.get("confounds") else None,
        split=split,
    )


def _read_table(table: Path) -> list[dict[str, str]]:
    try:
        if table.suffix == ".parquet":
            rows: Iterable[dict] = _read_parquet(table)
        else:
            with table.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ","))
    except FileNotFoundError as error:
        raise InputError(f"{table}: no such file") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read as a table ({error})") from error
    return [{k: _cell(v) for k, v in row.items() if k in TABLE_COLUMNS} for row in rows]


def _read_parquet(table: Path) -> list[dict]:
    try:  # here, because reading images by name needs no pyarrow
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError("reading parquet needs pyarrow: pip install pyarrow, or give a .tsv") from error
    try:
        return pq.read_table(table).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(error) from error


def _cell(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)  # a column of whole numbers with a gap arrives as 7.0
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("n/a", "nan", "none") else text


def _number(text: str, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise InputError(f"{where}: tr is {text!r}; expected seconds") from error
