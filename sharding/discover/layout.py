"""The layout of an input: as told, or recognised where that is unambiguous, which is then said.

In: what the user named, and options. Out: a `Discovery`: runs, what was left out, and a line on each input.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sharding.discover import bids, hcp, ukb
from sharding.discover.files import run_from_name, runs_in_folder
from sharding.discover.pattern import runs_by_pattern
from sharding.discover.source import LeftOut, RunSource, dataset_name
from sharding.discover.table import TABLE_ENDINGS, runs_in_table
from sharding.errors import InputError

LAYOUTS = ("auto", "bids", "hcp", "ukb", "files", "table")

LOOK_AT = 200
"Folders looked at below an input to recognise its layout."


@dataclass(frozen=True)
class FindOptions:
    """How inputs are read."""

    dataset: str | None = None
    "Name of the dataset; by default that of the folder given, or of the one that holds the file or table."
    layout: str = "auto"
    pattern: str | None = None
    "Of paths below a folder; the layout is then files."
    space: str | None = None
    "BIDS: take only this space-."
    desc: str | None = None
    "BIDS, HCP, UK Biobank: which processing of a run is meant; each layout has its default."
    tr: float | None = None
    "For runs whose table does not give its own."
    mask: Path | None = None
    "Likewise."


@dataclass(frozen=True)
class Discovery:
    """What inputs hold."""

    runs: list[RunSource] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    "How each folder or table was read, a line each."


def find_runs(
    inputs: Sequence[str | Path], dataset: str | None = None, tr: float | None = None, mask: Path | None = None
) -> tuple[list[RunSource], list[LeftOut]]:
    """Runs and left-out files of inputs, all options at their defaults; see `discover`."""
    found = discover(inputs, FindOptions(dataset=dataset, tr=tr, mask=mask))
    return found.runs, found.left_out


def discover(inputs: Sequence[str | Path], options: FindOptions | None = None) -> Discovery:
    """List the runs that inputs name.

    Parameters
    ----------
    inputs
        NIfTI files, folders, or tables (.tsv, .csv, .parquet).
    options
        How to read them.

    Raises
    ------
    InputError
        An input is missing or of an unknown kind, a table cannot be used, or no run is found at all.
    """
    options = options or FindOptions()
    _check_options(inputs, options)
    found = Discovery()
    for item in map(Path, inputs):
        runs, left_out, note = _in_one(item, options)
        named = [run for run in runs if run.subject]
        found.runs.extend(replace(run, tr=options.tr, tr_from="") if _told(run, options) else run for run in named)
        found.left_out.extend([*left_out, *(_nameless(run) for run in runs if not run.subject)])
        found.notes.extend([note] if note else [])
    runs = [replace(run, mask=run.mask or options.mask) for run in found.runs]
    if not runs:
        raise InputError(_nothing(inputs, found.left_out))
    return replace(found, runs=runs)


def recognise(folder: Path) -> str:
    """Layout of a folder: bids, hcp or ukb where it has the marks of that one alone, else files.

    bids: a dataset_description.json, in it or where its sub- folder stands. hcp: a folder MNINonLinear/Results, ukb: a
    folder fMRI/*.ica or *.feat, in it or among the first LOOK_AT folders below it.

    Raises
    ------
    InputError
        It has the marks of several, or BIDS trees stand below it.
    """
    if (bids.tree_root(folder) / "dataset_description.json").is_file():
        return "bids"
    if "MNINonLinear" in folder.absolute().parts:
        return "hcp"
    marks: dict[str, Path] = {}
    for number, (where, folders, files) in enumerate(os.walk(folder)):
        if mark := _mark(Path(where), files):
            marks.setdefault(mark, Path(where))
            folders.clear()
        if number >= LOOK_AT:
            break
        folders.sort(key=lambda name: (name not in ("MNINonLinear", "Results", "fMRI"), name))
        folders[:] = [name for name in folders if name not in ("T1w", "T1", "unprocessed", "dMRI")]
    if "bids" in marks:
        raise InputError(f"{folder}: holds a BIDS tree, {marks['bids']}; give the trees meant, or say --layout files")
    if len(marks) > 1:
        told = " and ".join(f"{name} ({where})" for name, where in sorted(marks.items()))
        raise InputError(f"{folder}: has the marks of {told}; give them one by one, or say --layout")
    return next(iter(marks), "files")


def _mark(where: Path, files: list[str]) -> str:
    if where.name == "Results" and where.parent.name == "MNINonLinear":
        return "hcp"
    if ukb.is_run_folder(where):
        return "ukb"
    return "bids" if "dataset_description.json" in files else ""


def _check_options(inputs: Sequence[str | Path], options: FindOptions) -> None:
    """Refuse options that the layouts of the inputs would not heed."""
    if options.pattern is not None and options.layout not in ("auto", "files"):
        raise InputError(f"--pattern goes with plain files, not with --layout {options.layout}")
    for name, heeded in (("space", {"bids"}), ("desc", {"bids", "hcp", "ukb"})):
        if getattr(options, name) is None:
            continue
        layouts = {_layout(Path(item), options) for item in inputs if Path(item).is_dir()}
        if not layouts or not layouts <= heeded:
            raise InputError(f"--{name} goes with folders read as {', '.join(sorted(heeded))}; see --layout")


def _layout(folder: Path, options: FindOptions) -> str:
    if options.pattern is not None:
        return "pattern"
    return recognise(folder) if options.layout == "auto" else options.layout


def _in_one(item: Path, options: FindOptions) -> tuple[list[RunSource], list[LeftOut], str]:
    if not item.exists():
        raise InputError(f"{item}: no such file or folder")
    if item.is_file() and item.name.endswith(TABLE_ENDINGS) and options.layout in ("auto", "table"):
        return runs_in_table(item, options.dataset), [], f"{item}: a table"
    if options.layout == "table":
        raise InputError(f"{item}: --layout table, but this is no .tsv, .csv or .parquet")
    if item.is_file():
        return [run_from_name(item, options.dataset or dataset_name(item.parent))], [], ""
    layout = _layout(item, options)
    runs, left_out = _in_folder(item, layout, options)
    said = {"files": "plain files, by their names", "pattern": f"files that fit {options.pattern}"}
    names = {"bids": "BIDS derivatives", "hcp": "HCP results", "ukb": "UK Biobank bulk data"}
    return runs, left_out, f"{item}: read as {said.get(layout) or names[layout]}"


def _in_folder(folder: Path, layout: str, options: FindOptions) -> tuple[list[RunSource], list[LeftOut]]:
    silent = options.tr is None  # about the TR: then sidecars are asked
    if layout == "bids":
        return bids.runs_in_bids(folder, options.dataset, options.space, options.desc, silent)
    if layout == "hcp":
        return hcp.runs_in_hcp(folder, options.dataset, options.desc)
    if layout == "ukb":
        return ukb.runs_in_ukb(folder, options.dataset, options.desc, silent)
    if layout == "pattern":
        return runs_by_pattern(folder, options.pattern or "", options.dataset)
    return runs_in_folder(folder, options.dataset)


def _told(run: RunSource, options: FindOptions) -> bool:
    """Whether the option --tr decides: a table's own goes before it, a sidecar's does not."""
    return options.tr is not None and (run.tr is None or run.tr_from == "sidecar")


def _nameless(run: RunSource) -> LeftOut:
    """A run of whose subject nothing can stand in a key."""
    reason = f"{run.path}: no letter from A to Z and no digit names its subject; rename it, or name it in a table"
    return LeftOut(run.path, reason, failed=True)


def _nothing(inputs: Sequence[str | Path], left_out: Sequence[LeftOut]) -> str:
    where = ", ".join(map(str, inputs))
    why = f"; {len(left_out):,} left out, the first: {left_out[0].path}: {left_out[0].reason}" if left_out else ""
    nested = next((f"{item}/derivatives" for item in inputs if (Path(item) / "derivatives").is_dir()), None)
    hint = f"; there is {nested}: give the tree in it" if nested else ""
    hint += "; --layout files goes by names and headers alone" if left_out and not nested else ""
    return f"{where}: no NIfTI run found (.nii or .nii.gz with several volumes){why}{hint}"
