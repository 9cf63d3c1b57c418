"""Trees of UK Biobank's imaging bulk fields: EID_20227_2_0/fMRI/rfMRI.ica/ (rest) and EID_20249_2_0/fMRI/tfMRI.feat/.

In: the folder of unpacked zips, or any above it. Out: runs in MNI space. UK Biobank delivers the cleaned series in the
scanner's own space beside a warp to MNI; laboratories apply it and keep the result in reg_standard/ or beside it. The
series as delivered is left out with the command that brings it to MNI. No image is opened.
"""

import json
import re
from pathlib import Path

from sharding.discover.source import LeftOut, RunSource, checked_dataset, dataset_name
from sharding.discover.walk import walk
from sharding.errors import InputError

RULE = """UK Biobank: in every fMRI/rfMRI*.ica and tfMRI*.feat, reg_standard/filtered_func_data_clean.nii.gz, else
filtered_func_data_clean_*.nii.gz whose name says MNI, standard or std; then the same of filtered_func_data (task runs
have no cleaned one). --desc NAME takes another stem. The folder EID_20227_2_0 is subject EID, session 2. The series as
delivered is in the scanner's own space and left out; FSL's applywarp with reg/example_func2standard_warp.nii.gz brings
it to MNI."""

_SUBJECT = re.compile(r"(?P<subject>\d{4,})(?:_\d{5})?(?:_(?P<session>\d))?(?:_\d+)*")
_RUN_FOLDER = re.compile(r"(?P<task>[rt]fMRI)(?:_(?P<run>\d+))?[^/]*\.(?:ica|feat)")
_TASKS = {"rfMRI": "rest", "tfMRI": "faces"}
_STEMS = ("filtered_func_data_clean", "filtered_func_data")
_STANDARD = re.compile(r"_\w*(?:MNI|standard|std)\w*\.nii(?:\.gz)?", re.IGNORECASE)
_MOTION = "prefiltered_func_data_mcf_rel.rms"


def runs_in_ukb(
    folder: Path, dataset: str | None = None, desc: str | None = None, read_sidecars: bool = True
) -> tuple[list[RunSource], list[LeftOut]]:
    """Runs of a tree of UK Biobank's imaging data.

    Parameters
    ----------
    folder
        Where to look.
    dataset
        Name; by default the folder's.
    desc
        Stem of the wanted series; by default filtered_func_data_clean, else filtered_func_data.
    read_sidecars
        Whether the TR is asked of them; not where it is told.
    """
    name = checked_dataset(dataset or dataset_name(folder))
    runs: list[RunSource] = []
    left_out: list[LeftOut] = []
    for where, files in walk(folder, left_out, _leads_to_runs):
        if _RUN_FOLDER.fullmatch(where.name):
            _take(where, files, name, (desc,) if desc else _STEMS, read_sidecars, runs, left_out)
    return runs, left_out


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is one of a FEAT or MELODIC run as UK Biobank names them."""
    return _RUN_FOLDER.fullmatch(folder.name) is not None and folder.parent.name == "fMRI"


def _leads_to_runs(folder: Path) -> bool:
    inside_run = any(_RUN_FOLDER.fullmatch(parent.name) for parent in folder.parents)
    return not inside_run and folder.name not in ("T1", "T2_FLAIR", "dMRI", "SWI", "unusable")


def _take(
    where: Path,
    files: list[str],
    dataset: str,
    stems: tuple[str, ...],
    read_sidecars: bool,
    runs: list[RunSource],
    left_out: list[LeftOut],
) -> None:
    candidates = list(dict.fromkeys(path for wanted in stems for path in _in_standard_space(where, files, wanted)))
    native = [where / f"{wanted}.nii.gz" for wanted in stems if f"{wanted}.nii.gz" in files]
    if not candidates:
        for path in native[:1]:
            warp = "applywarp with reg/example_func2standard_warp.nii.gz makes reg_standard/" + path.name
            left_out.append(LeftOut(path, f"in the scanner's own space; {warp}"))
        return
    best, *others = candidates
    left_out += [LeftOut(path, f"{best.relative_to(where)} is taken") for path in (*others, *native)]
    person = next((m for parent in where.parents if (m := _SUBJECT.fullmatch(parent.name))), None)
    if person is None:
        left_out.append(LeftOut(best, "no folder above it is named by a participant's number", failed=True))
        return
    kind = _RUN_FOLDER.fullmatch(where.name)
    assert kind is not None
    try:
        tr = _sidecar_tr(where.parent / f"{kind['task']}.json") if read_sidecars else None
    except InputError as error:
        left_out.append(LeftOut(best, str(error), failed=True))
        return
    mask, motion = where / "reg_standard" / "mask.nii.gz", where / "mc" / _MOTION
    runs.append(
        RunSource(
            path=best,
            dataset=dataset,
            subject=person["subject"],
            session=person["session"] or "",
            run=kind["run"] or "",
            task=_TASKS[kind["task"]],
            tr=tr,
            tr_from="" if tr is None else "sidecar",
            mask=mask if mask.is_file() else None,
            motion=motion if motion.is_file() else None,
            found=True,
        )
    )


def _in_standard_space(where: Path, files: list[str], wanted: str) -> list[Path]:
    inside = where / "reg_standard" / f"{wanted}.nii.gz"
    named = [where / file for file in files if file.startswith(wanted) and _STANDARD.fullmatch(file[len(wanted) :])]
    return ([inside] if inside.is_file() else []) + named


def _sidecar_tr(path: Path) -> float | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("RepetitionTime")
        return None if value is None else float(value)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: sidecar cannot be read ({error}); repair it or give --tr SECONDS") from error
