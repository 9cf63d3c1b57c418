"""Made-up trees as pipelines leave them (fMRIPrep, HCP, UK Biobank), of small real NIfTI images or of empty files."""

import functools
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.helpers.images import head

MNI6, MNI2009 = "space-MNI152NLin6Asym_res-2", "space-MNI152NLin2009cAsym_res-2"


@functools.lru_cache(maxsize=1)
def _image() -> bytes:
    return head(voxel_mm=10.0, volumes=22).to_bytes()


@functools.lru_cache(maxsize=1)
def _mask() -> bytes:
    image = head(voxel_mm=10.0, volumes=1)
    return nib.Nifti1Image((np.asarray(image.dataobj)[..., 0] > 0).astype(np.uint8), image.affine).to_bytes()


def put(folder: Path, name: str, content: bytes | str | dict | None = None) -> Path:
    """Write a file of a tree: by default a small run, a mask where its name says so, or an empty object."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = {} if name.endswith(".json") else _mask() if "mask" in path.name else _image()
    if isinstance(content, bytes):
        path.write_bytes(gzip.compress(content, 1, mtime=0) if name.endswith(".gz") else content)
    else:
        path.write_text(json.dumps(content) if isinstance(content, dict) else content)
    return path


def bids_tree(root: Path) -> Path:
    """Root of fMRIPrep derivatives: what it says of itself."""
    put(root, "dataset_description.json", {"Name": "x", "BIDSVersion": "1.9.0", "DatasetType": "derivative"})
    return root


def fmriprep_run(root: Path, prefix: str, spaces: tuple[str, ...] = (MNI6, MNI2009), empty: bool = False) -> Path:
    """What fMRIPrep leaves of one run: in each space the series, its sidecar, mask and reference; and confounds.

    Parameters
    ----------
    prefix
        Entities of the run, such as sub-01_ses-a_task-rest_run-1.
    empty
        Files without content, for tests of names alone.
    """
    parts = prefix.split("_")
    folder = root.joinpath(*(part for part in parts if part.startswith(("sub-", "ses-"))), "func")
    content = b"" if empty else None
    for space in spaces:
        name = f"{prefix}_{space}" if space else prefix
        put(folder, f"{name}_desc-preproc_bold.nii.gz", content)
        put(folder, f"{name}_desc-preproc_bold.json", {"RepetitionTime": 1.0, "SkullStripped": False})
        put(folder, f"{name}_desc-brain_mask.nii.gz", content)
        put(folder, f"{name}_boldref.nii.gz", content)
    put(folder, f"{prefix}_desc-confounds_timeseries.tsv", confounds())
    put(folder, f"{prefix}_desc-confounds_timeseries.json")
    return folder


def confounds(volumes: int = 22, moved: tuple[int, ...] = (7,)) -> str:
    """A table as fMRIPrep's of confounds: motion, tissue signals, displacement (large at the volumes in `moved`)."""
    rng = np.random.default_rng(0)
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"] + ["csf", "white_matter", "global_signal"]
    columns = {}
    for name in names:
        series = rng.standard_normal(volumes) * (0.05 if name[0] in "tr" else 1)
        columns[name] = series
        columns[f"{name}_derivative1"] = np.diff(series, prepend=np.nan)
        columns[f"{name}_power2"] = series**2
        columns[f"{name}_derivative1_power2"] = np.diff(series, prepend=np.nan) ** 2
    displacement = np.full(volumes, 0.1)
    displacement[list(moved)] = 2.0
    displacement[0] = np.nan
    columns |= {"framewise_displacement": displacement, "std_dvars": np.where(np.isnan(displacement), np.nan, 1.0)}
    columns["cosine00"] = np.cos(np.pi * (np.arange(volumes) + 0.5) / volumes)
    rows = zip(*columns.values(), strict=True)
    lines = ["\t".join(columns), *("\t".join("n/a" if np.isnan(v) else f"{v:.6f}" for v in row) for row in rows)]
    return "\n".join(lines) + "\n"


def hcp_run(root: Path, subject: str, run: str, *more: str, empty: bool = False) -> Path:
    """What HCP's pipelines leave of one run; `more` are further endings, such as _hp2000_clean."""
    folder = root / subject / "MNINonLinear" / "Results" / run
    content = b"" if empty else None
    for ending in ("", *more):
        put(folder, f"{run}{ending}.nii.gz", content)
    put(folder, f"{run}_SBRef.nii.gz", content)
    put(folder, "brainmask_fs.2.nii.gz", content)
    put(folder, "Movement_RelativeRMS.txt", "0\n" + "0.1\n" * 20 + "0.3\n")
    return folder


def ukb_run(root: Path, folder: str, standard: bool = True, empty: bool = False) -> Path:
    """What UK Biobank delivers of a resting run, and, where `standard`, the series that a laboratory warped to MNI."""
    run = root / folder / "fMRI" / "rfMRI.ica"
    content = b"" if empty else None
    put(run.parent, "rfMRI.nii.gz", content)
    put(run.parent, "rfMRI.json", {"RepetitionTime": 0.735})
    put(run, "filtered_func_data_clean.nii.gz", content)
    put(run, "mask.nii.gz", content)
    put(run, "mc/prefiltered_func_data_mcf_rel.rms", "0.1\n" * 21)
    if standard:
        put(run, "reg_standard/filtered_func_data_clean.nii.gz", content)
        put(run, "reg_standard/mask.nii.gz", content)
    return run
