"""Plain files and folders: every 4D NIfTI below a folder is a run, its name read as BIDS entities where it has them.

In: a file, or a folder searched to the bottom. Out: runs, and what was left out. Names that say mask, anatomical or
reference are left out; 3D images are recognised later, by their headers.
"""

import re
from dataclasses import replace
from pathlib import Path

from sharding.discover.source import (
    IMAGE_ENDINGS,
    LeftOut,
    RunSource,
    checked_dataset,
    dataset_name,
    label,
    stem,
    variant_of,
)
from sharding.discover.walk import walk

NOT_BOLD = ("mask", "T1w", "T2w", "dseg", "probseg", "boldref", "sbref", "xfm", "phasediff", "magnitude1", "magnitude2")
"Last parts of BIDS names that are no functional series; left out of folders."


def runs_in_folder(folder: Path, dataset: str | None = None) -> tuple[list[RunSource], list[LeftOut]]:
    """Runs below a folder, by their names."""
    name = dataset or dataset_name(folder)
    runs: list[RunSource] = []
    left_out: list[LeftOut] = []
    for where, files in walk(folder, left_out):
        for path in (where / file for file in files if file.endswith(IMAGE_ENDINGS)):
            last = stem(path).rsplit("_", 1)[-1]
            if last in NOT_BOLD:
                left_out.append(LeftOut(path, f"name ends in {last}: no functional series"))
            else:
                runs.append(replace(run_from_name(path, name), found=True))
    return runs, left_out


def run_from_name(path: Path, dataset: str) -> RunSource:
    """A run as far as its file's name tells; without sub- the whole name is the subject."""
    entities = dict(re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9+]+)", stem(path)))
    return RunSource(
        path=path,
        dataset=checked_dataset(dataset),
        subject=label(entities.get("sub", "") or stem(path)),
        session=label(entities.get("ses", "")),
        run=label(entities.get("run", "")),
        task=label(entities.get("task", "")),
        variant=variant_of(entities),
    )
