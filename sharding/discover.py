"""Which runs are meant: files, folders searched for NIfTI, or a table, each with the entities that name it.

In: paths given by the user. Out: `RunSource` for every run, and for every file found in a folder but left out, why.
Names are read as BIDS entities (sub-, ses-, task-, run-, ...); a table's columns go before them. No image is opened.
"""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sharding.errors import InputError
from sharding.format import DATASET_PATTERN, SPLITS

IMAGE_ENDINGS = (".nii", ".nii.gz")
TABLE_ENDINGS = (".tsv", ".csv", ".parquet")
TABLE_COLUMNS = ("path", "subject", "session", "run", "task", "dataset", "family", "tr", "mask", "split")

VARIANT_ENTITIES = ("acq", "ce", "rec", "dir", "echo", "part")
"Entities that tell apart files of one task and run."

NOT_BOLD = ("mask", "T1w", "T2w", "dseg", "probseg", "boldref", "sbref", "xfm", "phasediff", "magnitude1", "magnitude2")
"Last parts of BIDS names that are no functional series; left out of folders."


@dataclass(frozen=True)
class RunSource:
    """One run to be taken into a corpus. Text is "" where unknown."""

    path: Path
    dataset: str
    subject: str
    session: str = ""
    run: str = ""
    task: str = ""
    variant: str = ""
    "Further entities of the name, such as dir-AP_echo-2."
    family: str = ""
    tr: float | None = None
    "Repetition time in s, where given."
    mask: Path | None = None
    "The run's own brain mask, where given."
    split: str = ""
    "Where given; else by hash."
    found: bool = False
    "Found in a folder, not named by the user: a 3D image is then left out, not an error."


@dataclass(frozen=True)
class LeftOut:
    """A file found in a folder that is no run, and why."""

    path: Path
    reason: str


def find_runs(
    inputs: Sequence[str | Path], dataset: str | None = None, tr: float | None = None, mask: Path | None = None
) -> tuple[list[RunSource], list[LeftOut]]:
    """List the runs that inputs name.

    Parameters
    ----------
    inputs
        NIfTI files, folders (searched to the bottom), or tables (.tsv, .csv, .parquet).
    dataset
        Name of the dataset; by default that of the folder given, or of the one that holds the file or table.
    tr, mask
        For runs whose table does not give its own.

    Raises
    ------
    InputError
        An input is missing or of an unknown kind, or a table cannot be used.
    """
    runs: list[RunSource] = []
    left_out: list[LeftOut] = []
    for item in map(Path, inputs):
        if not item.exists():
            raise InputError(f"{item}: no such file or folder")
        if item.is_dir():
            found, left = _in_folder(item, dataset)
            runs += found
            left_out += left
        elif item.name.endswith(TABLE_ENDINGS):
            runs += _in_table(item, dataset)
        else:
            runs.append(_from_name(item, dataset or _dataset_name(item.parent)))
    runs = [replace(run, tr=run.tr or tr, mask=run.mask or mask) for run in runs]
    if not runs:
        raise InputError(f"{', '.join(map(str, inputs))}: no NIfTI run found (.nii or .nii.gz with several volumes)")
    return runs, left_out


def _in_folder(folder: Path, dataset: str | None) -> tuple[list[RunSource], list[LeftOut]]:
    name = dataset or _dataset_name(folder)
    runs, left_out = [], []
    for path in _images(folder):
        last = _stem(path).rsplit("_", 1)[-1]
        if last in NOT_BOLD:
            left_out.append(LeftOut(path, f"name ends in {last}: no functional series"))
        else:
            runs.append(replace(_from_name(path, name), found=True))
    return runs, left_out


def _images(folder: Path) -> list[Path]:
    """NIfTI files below a folder, sorted; links to folders are followed once."""
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: folder cannot be read ({error.strerror})") from error

    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(where, name) for name in files if name.endswith(IMAGE_ENDINGS) and not name.startswith(".")]
    return sorted(found)


def _from_name(path: Path, dataset: str) -> RunSource:
    entities = dict(re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9+]+)", _stem(path)))
    variant = "_".join(f"{name}-{entities[name]}" for name in VARIANT_ENTITIES if name in entities)
    return RunSource(
        path=path,
        dataset=_checked_dataset(dataset),
        subject=_label(entities.get("sub", "") or _stem(path)),
        session=_label(entities.get("ses", "")),
        run=_label(entities.get("run", "")),
        task=_label(entities.get("task", "")),
        variant=variant.replace("+", "-"),
    )


def _in_table(table: Path, dataset: str | None) -> list[RunSource]:
    rows = _read_table(table)
    if not rows or "path" not in rows[0]:
        raise InputError(f"{table}: no column path with a NIfTI file a row; columns read: {', '.join(TABLE_COLUMNS)}")
    return [_from_row(table, number, row, dataset) for number, row in enumerate(rows, start=1)]


def _from_row(table: Path, number: int, row: dict[str, str], dataset: str | None) -> RunSource:
    where = f"{table}, row {number}"
    if not row["path"]:
        raise InputError(f"{where}: path is empty")
    source = _from_name(table.parent / row["path"], row.get("dataset") or dataset or _dataset_name(table.parent))
    labels = {name: _label(row[name]) for name in ("subject", "session", "run", "task") if row.get(name)}
    split = row.get("split", "")
    if split and split not in SPLITS:
        raise InputError(f"{where}: split is {split!r}; expected {', '.join(SPLITS)} or nothing")
    return replace(
        source,
        **labels,  # type: ignore[arg-type]
        family=row.get("family", ""),
        tr=_number(row.get("tr", ""), where),
        mask=table.parent / row["mask"] if row.get("mask") else None,
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
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("n/a", "nan") else text


def _number(text: str, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise InputError(f"{where}: tr is {text!r}; expected seconds") from error


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _label(text: str) -> str:
    """Text as it may stand in a key: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def _dataset_name(folder: Path) -> str:
    """Name of a folder of runs; of a file deep in a BIDS tree, that of the tree."""
    folder = folder.resolve()
    while folder.name == "func" or folder.name.startswith(("sub-", "ses-")):
        folder = folder.parent
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name)[:40].strip("-") or "data"


def _checked_dataset(name: str) -> str:
    if not DATASET_PATTERN.fullmatch(name):
        raise InputError(f"dataset name {name!r}: expected 1 to 40 letters, digits, - and _; give --dataset NAME")
    return name
