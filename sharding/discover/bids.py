"""BIDS derivatives as fMRIPrep writes them: which preprocessed series of a tree are runs, by a stated rule.

In: the root of a tree with sub-*/[ses-*/]func/, or a folder within one. Out: runs with entities, mask, confounds and
TR, and every other functional series with the reason it was left out. Names are taken apart by bids2table; sidecars are
merged from the root down (BIDS' inheritance principle). Only func folders are listed, so that 50,000 subjects with
their figures and surfaces cost a few directory reads each. No image is opened.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sharding.discover.names import Name, read_name
from sharding.discover.sidecars import Sidecars
from sharding.discover.source import (
    VARIANT_ENTITIES,
    LeftOut,
    RunSource,
    checked_dataset,
    dataset_name,
    label,
    variant_of,
)
from sharding.discover.walk import walk
from sharding.errors import InputError

RULE = """BIDS derivatives: every sub-*/[ses-*/]func/*_bold.nii[.gz] with desc-preproc (--desc) and space-MNI152*
is a candidate. Of several of one run (same other entities) one is taken: space MNI152NLin6Asym (HCP and
UK Biobank lie in it), then MNI152NLin2009cAsym, then others by name (--space NAME takes only that); of
one space res-2, then none, then others by name; .nii.gz before .nii. Phase and complex parts (part-) are
left out; single echoes too where they are several or their combination is there. The mask is the
desc-brain_mask of the same space and res; TR comes from the merged sidecars."""

SPACE_ORDER = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
RES_ORDER = ("2", "")

NOT_IDENTITY = ("space", "res", "desc", "cohort", "den", "part", "echo")
"Entities that say how a run was processed or which part of it this is, not which run it is."

_SUBJECT_FOLDER = re.compile(r"sub-[A-Za-z0-9+]+")
_SERIES = ("_bold.nii.gz", "_bold.nii")
_CONFOUNDS = ("_desc-confounds_timeseries.tsv", "_desc-confounds_regressors.tsv")


@dataclass(frozen=True)
class _Image:
    """A functional series and its taken-apart name."""

    path: Path
    name: Name

    @cached_property
    def identity(self) -> tuple[tuple[str, Any], ...]:
        """What run this is of."""
        return tuple((k, v) for k, v in sorted(self.name.values.items()) if k not in NOT_IDENTITY)

    @property
    def rank(self) -> tuple[Any, ...]:
        """Lower is preferred, among files of one run."""
        entities = self.name.entities
        return (*_place(entities.get("space", ""), SPACE_ORDER), *_place(entities.get("res", ""), RES_ORDER),
                self.path.suffix != ".gz")  # fmt: skip


def runs_in_bids(
    folder: Path,
    dataset: str | None = None,
    space: str | None = None,
    desc: str | None = None,
    read_sidecars: bool = True,
) -> tuple[list[RunSource], list[LeftOut]]:
    """Runs of a tree of BIDS derivatives.

    Parameters
    ----------
    folder
        The root (where sub-* folders are), or a subject's, session's or func folder.
    dataset
        Name; by default the root's.
    space
        Take only this space- (whatever it is); by default the best MNI152 one.
    desc
        Which desc- is meant; preproc by default, "" for files without one.
    read_sidecars
        Whether the TR is asked of them; not where it is told.

    Raises
    ------
    InputError
        The folder cannot be read, or two files are the same run in every respect.
    """
    root = tree_root(folder)
    if root != folder:
        folder = Path(os.path.abspath(folder))  # so that the levels between are found by name
    name = checked_dataset(dataset or dataset_name(root))
    left_out: list[LeftOut] = []
    sidecars = Sidecars(root) if read_sidecars else None
    runs: list[RunSource] = []
    for where, files in walk(folder, left_out, _is_level):
        if sidecars:
            sidecars.saw(where, files)
        if where.name == "func":
            runs += _runs_of_func(where, files, name, space, "preproc" if desc is None else desc, sidecars, left_out)
    return runs, left_out


def tree_root(folder: Path) -> Path:
    """The folder in which the sub-* folder of this one stands; itself if it is no part of one."""
    here = Path(os.path.abspath(folder))
    while here.name == "func" or here.name.startswith("ses-"):
        here = here.parent
    return here.parent if _SUBJECT_FOLDER.fullmatch(here.name) else folder


def _is_level(folder: Path) -> bool:
    """Whether runs can stand in or below a folder of a tree."""
    return folder.name == "func" or folder.name.startswith(("sub-", "ses-"))


def _runs_of_func(
    where: Path,
    files: list[str],
    dataset: str,
    space: str | None,
    desc: str,
    sidecars: Sidecars | None,
    left_out: list[LeftOut],
) -> Iterator[RunSource]:
    groups: dict[tuple, list[_Image]] = defaultdict(list)
    for file in files:
        if file.endswith(_SERIES):
            image = _Image(where / file, read_name(where / file))
            if reason := _wrong(image):
                left_out.append(LeftOut(image.path, reason, failed=True))
            elif reason := _unwanted(image, space, desc):
                left_out.append(LeftOut(image.path, reason))
            else:
                groups[image.identity].append(image)
    for images in groups.values():
        for image in _chosen(_one_echo(images, left_out), left_out):
            try:
                yield _run(image, set(files), dataset, sidecars)
            except InputError as error:
                left_out.append(LeftOut(image.path, str(error), failed=True))


def _wrong(image: _Image) -> str:
    """What contradicts itself in a name, or nothing."""
    entities = image.name.entities
    if image.name.repeated:
        return f"its name has the entity {image.name.repeated}- twice"
    for parent in image.path.parents:
        for entity in ("sub", "ses"):
            if parent.name.startswith(f"{entity}-") and entities.get(entity) != parent.name[len(entity) + 1 :]:
                return f"its name says {entity}-{entities.get(entity, '?')}, its folder {parent.name}"
        if parent.name.startswith("sub-"):
            break
    return "" if entities.get("sub") else "its name has no sub-"


def _unwanted(image: _Image, space: str | None, desc: str) -> str:
    """Why a series is none of those meant, or nothing."""
    entities = image.name.entities
    if entities.get("part", "mag") != "mag":
        return f"part-{entities['part']}: not the magnitude"
    if entities.get("desc", "") != desc:
        return f"desc-{entities['desc']}" if "desc" in entities else f"no desc-{desc}: not a preprocessed series"
    found = entities.get("space", "")
    if space is not None:
        return "" if found == space else f"space-{found or 'none'}: --space is {space}"
    if found.startswith("MNI152"):
        return ""
    return f"space-{found}: not MNI152" if found else "no space-: in the scanner's own space"


def _one_echo(images: list[_Image], left_out: list[LeftOut]) -> list[_Image]:
    """Files of one run without single echoes where these are several or combined."""
    echoes = {image.name.entities.get("echo", "") for image in images}
    if len(echoes) == 1:
        return images
    combined = [image for image in images if "echo" not in image.name.entities]
    reason = "one echo of a run whose combination is there" if combined else "one of several echoes, not combined"
    left_out += [LeftOut(image.path, reason) for image in images if image not in combined]
    return combined


def _chosen(images: list[_Image], left_out: list[LeftOut]) -> list[_Image]:
    """The preferred of several files of one run; the others are left out."""
    if not images:
        return []
    best, *others = sorted(images, key=lambda image: (image.rank, image.path.name))
    if others and others[0].rank == best.rank:
        raise InputError(f"{best.path} and {others[0].path} are the same run; remove or rename one, or give a table")
    left_out += [LeftOut(image.path, f"{_kind(best)} of the same run is taken") for image in others]
    return [best]


def _kind(image: _Image) -> str:
    entities = image.name.entities
    said = [f"{name}-{entities[name]}" for name in ("space", "res") if name in entities]
    return " ".join(said) or image.path.name


def _run(image: _Image, files: set[str], dataset: str, sidecars: Sidecars | None) -> RunSource:
    entities = dict(image.name.entities)
    entities.pop("part", None)  # mag: the series itself
    others = tuple(
        name for name in entities if name not in (*VARIANT_ENTITIES, *NOT_IDENTITY, "sub", "ses", "task", "run")
    )
    source = RunSource(
        path=image.path,
        dataset=dataset,
        subject=label(entities["sub"]),
        session=label(entities.get("ses", "")),
        run=label(entities.get("run", "")),
        task=label(entities.get("task", "")),
        variant=variant_of(entities, (*VARIANT_ENTITIES, *others)),
        mask=_beside(image, files, _mask_names(image)),
        confounds=_beside(image, files, _confounds_names(image)),
        found=True,
    )
    tr = sidecars.tr(image.path, image.name.entities) if sidecars else None
    return source if tr is None else replace(source, tr=tr, tr_from="sidecar")


def _mask_names(image: _Image) -> list[str]:
    whole = {**image.name.entities, "desc": "brain"}
    without_echo = {k: v for k, v in whole.items() if k != "echo"}
    return [_joined(e) + ending for e in (whole, without_echo) for ending in ("_mask.nii.gz", "_mask.nii")]


def _confounds_names(image: _Image) -> list[str]:
    whole = {k: v for k, v in image.name.entities.items() if k not in ("space", "res", "desc", "cohort", "den")}
    without_echo = {k: v for k, v in whole.items() if k not in ("echo", "part")}
    return [_joined(e) + ending for e in (whole, without_echo) for ending in _CONFOUNDS]


def _joined(entities: dict[str, str]) -> str:
    return "_".join(f"{name}-{value}" for name, value in entities.items())


def _beside(image: _Image, files: set[str], names: list[str]) -> Path | None:
    return next((image.path.parent / name for name in names if name in files), None)


def _place(value: str, order: tuple[str, ...]) -> tuple[int, str]:
    return (order.index(value), "") if value in order else (len(order), value)
