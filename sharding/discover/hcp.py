"""Trees of the Human Connectome Project: SUBJECT/MNINonLinear/Results/RUN/RUN.nii.gz (young adult, 7T, lifespan).

In: the folder of subjects, or any folder above or within one. Out: runs with task, run and phase encoding direction
from the run's name, its brain mask and frame-to-frame motion. No image is opened.
"""

import re
from pathlib import Path

from sharding.discover.source import LeftOut, RunSource, checked_dataset, dataset_name, label
from sharding.discover.walk import walk

RULE = """HCP: every MNINonLinear/Results/RUN/RUN.nii.gz, minimally preprocessed as every run has it; --desc
hp2000_clean takes RUN_hp2000_clean.nii.gz instead (ICA-FIX, mostly resting state). The mask is brainmask_fs.2.nii.gz,
motion comes from Movement_RelativeRMS.txt. A subject folder HCA0000000_V1_MR is subject HCA0000000, session V1."""

NO_SUBJECT = "the folder above MNINonLinear is not named by a subject's number"
"Without that folder's name, which may be a person's."

_RUN = re.compile(r"(?:[rt]fMRI_)?(?P<task>[A-Za-z]+?)(?P<run>\d*)(?:_(?P<acq>7T))?_(?P<dir>LR|RL|AP|PA)")
_SUBJECT = re.compile(r"(?P<subject>[A-Za-z]*\d+)(?:_(?P<session>[A-Za-z0-9]+?))?(?:_MR)?(?:_3T|_7T)?")
_MASKS = ("brainmask_fs.2.nii.gz", "brainmask_fs.2.0.nii.gz", "brainmask_fs.nii.gz")
_MOTION = "Movement_RelativeRMS.txt"


def runs_in_hcp(
    folder: Path, dataset: str | None = None, desc: str | None = None
) -> tuple[list[RunSource], list[LeftOut]]:
    """Runs of a tree of HCP results.

    Parameters
    ----------
    folder
        Where to look.
    dataset
        Name; by default the folder's.
    desc
        Text between the run's name and .nii.gz, such as hp2000_clean; "" or None for the minimally preprocessed one.
    """
    name = checked_dataset(dataset or dataset_name(folder))
    runs: list[RunSource] = []
    left_out: list[LeftOut] = []
    for where, files in walk(folder, left_out, _leads_to_runs):
        if where.parent.name == "Results" and where.parent.parent.name == "MNINonLinear":
            _take(where, files, name, f"_{desc}" if desc else "", runs, left_out)
    return runs, left_out


def _leads_to_runs(folder: Path) -> bool:
    """Whether to open a folder: of MNINonLinear only Results, of that only runs, of them nothing."""
    parents = [parent.name for parent in folder.parents][:3]
    if "MNINonLinear" in parents:
        return (folder.name == "Results" and parents[0] == "MNINonLinear") or parents[0] == "Results"
    return folder.name not in ("T1w", "unprocessed", "MEG", "release-notes", "Results")


def _take(
    where: Path, files: list[str], dataset: str, ending: str, runs: list[RunSource], left_out: list[LeftOut]
) -> None:
    wanted = f"{where.name}{ending}.nii.gz"
    series = [file for file in files if re.fullmatch(rf"{re.escape(where.name)}(_hp\w+)?\.nii\.gz", file)]
    match = _RUN.fullmatch(where.name)
    subject = _SUBJECT.fullmatch(where.parents[2].name)
    if wanted not in files:
        why = "several runs in one" if not match else "no such file"
        left_out.append(LeftOut(where / wanted, f"{why}; there is {', '.join(series) or 'no series'}"))
        return
    if subject is None:
        left_out.append(LeftOut(where / wanted, f"{where / wanted}: {NO_SUBJECT}", failed=True))
        return
    left_out += [LeftOut(where / file, f"{wanted} is taken") for file in series if file != wanted]
    found = match.groupdict() if match else {"task": where.name, "run": "", "acq": "", "dir": ""}
    variant = [f"{name}-{found[name]}" for name in ("acq", "dir") if found[name]]
    runs.append(
        RunSource(
            path=where / wanted,
            dataset=dataset,
            subject=subject["subject"],
            session=subject["session"] or "",
            run=found["run"],
            task=label(found["task"]),
            variant="_".join(variant),
            mask=next((where / mask for mask in _MASKS if mask in files), None),
            motion=where / _MOTION if _MOTION in files else None,
            found=True,
        )
    )
