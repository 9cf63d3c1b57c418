"""An atlas as a folder: written whole, read back only if every byte is as it was written.

    labels.nii.gz   int32 labels on the canonical grid, for any viewer
    regions.tsv     index, name, group of each region, with its voxels and patches; rows as in occupancy.npy
    occupancy.npy   int32 (R, P): voxels of region r in patch p (by vote: all of the patch for its winner, else 0)
    atlas.json      source, settings, what was lost and why, totals, sha256 of the files above and of itself
    summary.txt, atlas.png  for people (not read back)

No pickle anywhere: tables are text, the matrix is .npy read with pickling refused.
"""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sharding.atlas.labels import Label, load_label_image_on_grid, load_labels_tsv
from sharding.atlas.make import Atlas, totals
from sharding.atlas.occupancy import own_patches
from sharding.errors import InputError, ShardingError
from sharding.mask_image import map_bytes
from sharding.write import npy_bytes, sync_folder

VERSION = 1
LABELS, REGIONS, OCCUPANCY, FACTS = "labels.nii.gz", "regions.tsv", "occupancy.npy", "atlas.json"


def write_atlas(out: Path, atlas: Atlas, summary: str, picture: bytes, overwrite: bool = False) -> None:
    """Write the folder; it appears under its name only when whole.

    Raises
    ------
    ShardingError
        `out` exists, unless it is an atlas and `overwrite` is set.
    """
    if out.exists() and not (overwrite and (out / FACTS).is_file()):
        raise ShardingError(f"{out}: exists; choose another, or --overwrite where it is an atlas")
    files = {LABELS: map_bytes(atlas.labels), REGIONS: _regions_tsv(atlas), OCCUPANCY: npy_bytes(atlas.occupancy)}
    facts: dict[str, Any] = {
        "version": VERSION,
        "patch": list(atlas.patch),
        "occupancy": atlas.method,
        "source": atlas.source,
        "totals": totals(atlas),
        "lost": [{"index": la.index, "name": la.name, "group": la.group, "reason": why} for la, why in atlas.lost],
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    facts["sha256"] = _own_hash(facts)
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    files |= {FACTS: text.encode(), "summary.txt": summary.encode(), "atlas.png": picture}
    out.parent.mkdir(parents=True, exist_ok=True)
    work, old = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    try:
        work.mkdir()
        for name, data in files.items():
            with (work / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if out.exists():
            out.rename(old)
        work.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def load_atlas(path: str | Path) -> Atlas:
    """Read a folder made by `fmri-shards atlas`.

    Raises
    ------
    InputError
        A file is missing or not as it was written, or the folder is of a newer version.
    """
    path = Path(path)
    facts = _read_facts(path)
    for name, wanted in facts["files"].items():
        if hashlib.sha256(_read(path / name)).hexdigest() != wanted:
            raise InputError(f"{path / name}: not as it was written; make the atlas again")
    lost = [(Label(row["index"], row["name"], row["group"]), row["reason"]) for row in facts["lost"]]
    x, y, z = facts["patch"]
    return Atlas(
        labels=load_label_image_on_grid(path / LABELS),
        regions=load_labels_tsv(path / REGIONS),
        occupancy=np.load(io.BytesIO(_read(path / OCCUPANCY)), allow_pickle=False),
        patch=(x, y, z),
        method=facts["occupancy"],
        lost=lost,
        source=facts["source"],
    )


def is_atlas(path: str | Path) -> bool:
    """Whether a path is a folder made by `fmri-shards atlas`, rather than a label image."""
    return (Path(path) / FACTS).is_file()


def _read_facts(path: Path) -> dict[str, Any]:
    file = path / FACTS
    try:
        facts = json.loads(_read(file))
        whole = facts["sha256"] == _own_hash(facts) and {LABELS, REGIONS, OCCUPANCY} <= set(facts["files"])
        version = int(facts["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); make the atlas again") from error
    if version > VERSION:
        raise InputError(f"{file}: version {version}, this program reads up to {VERSION}; update it")
    if not whole:
        raise InputError(f"{file}: not as it was written; make the atlas again")
    return facts


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); make the atlas again") from error


def _own_hash(facts: dict[str, Any]) -> str:
    content = {key: value for key, value in facts.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _regions_tsv(atlas: Atlas) -> bytes:
    voxels = np.bincount(atlas.labels.ravel(), minlength=max(region.index for region in atlas.regions) + 1)
    own = own_patches(atlas.occupancy, atlas.patch_voxels).sum(axis=1)
    lines = ["index\tname\tgroup\tvoxels\tpatches\town_patches"]
    for row, region in enumerate(atlas.regions):
        touched = np.count_nonzero(atlas.occupancy[row])
        name = " ".join(region.name.split())
        group = " ".join(region.group.split())
        lines.append(f"{region.index}\t{name}\t{group}\t{voxels[region.index]}\t{touched}\t{own[row]}")
    return ("\n".join(lines) + "\n").encode()
