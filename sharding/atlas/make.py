"""Make an atlas from a label image: on the canonical grid, counted in patches, with what was lost on the way.

In: a label image, names and groups, the size of a patch. Out: an `Atlas` in memory; store.py keeps it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sharding.atlas.labels import Label, load_label_image_on_grid, read_label_volume
from sharding.atlas.occupancy import maskable_patches, patch_occupancy, region_labels, voted
from sharding.errors import InputError
from sharding.grid import axis_codes
from sharding.mask import brain_mask

METHODS = ("weighted", "vote")


@dataclass(frozen=True, eq=False)
class Atlas:
    """An atlas on the canonical grid.

    Attributes
    ----------
    labels
        int32 (96, 96, 96), 0 for none; regions that were lost are not in it.
    regions
        Of each row of `occupancy`: label, name, group ("" for none).
    occupancy
        int32 (R, P).
    patch
        Voxels of a patch along x, y, z.
    method
        weighted or vote.
    lost
        Regions that are not here, and why.
    source
        Facts about the image it was made from.
    """

    labels: np.ndarray
    regions: list[Label]
    occupancy: np.ndarray
    patch: tuple[int, int, int]
    method: str
    lost: list[tuple[Label, str]]
    source: dict[str, Any]

    @property
    def patch_voxels(self) -> int:
        """Voxels of a whole patch."""
        return int(np.prod(self.patch))

    @property
    def groups(self) -> list[str]:
        """Names of groups in order of their first region."""
        return list(dict.fromkeys(region.group for region in self.regions if region.group))


def make_atlas(
    image: Path, table: Sequence[Label], patch: Sequence[int], method: str = "weighted", file_order: bool = False
) -> Atlas:
    """Bring a label image to the canonical grid and count its regions in patches.

    Parameters
    ----------
    image
        3D label image in MNI152 space.
    table
        Names and groups; labels of the image that it lacks are named label_N. Empty names all so.
    patch
        Voxels of a patch along x, y, z.
    method
        weighted counts voxels; vote gives each patch to one region, as the published map does.
    file_order
        Ignore left and right of the affine, for parity with the published map of a LAS atlas.

    Raises
    ------
    InputError
        The image or the patch cannot be used.
    """
    if method not in METHODS:
        raise InputError(f"occupancy {method!r}; expected {' or '.join(METHODS)}")
    labels = load_label_image_on_grid(image, file_order)
    volume = read_label_volume(image)
    stored = set(np.unique(volume.values).tolist()) - {0}
    known = {label.index: label for label in table}
    names = [known.get(index, Label(index, f"label_{index}")) for index in sorted(stored | set(known) - {0})]
    x, y, z = patch if len(patch) == 3 else (0, 0, 0)
    occupancy = patch_occupancy(labels, patch)
    if method == "vote":
        occupancy = voted(occupancy, x * y * z)
    rows = {int(index): row for row, index in enumerate(region_labels(labels))}
    lost = [(label, reason) for label in names if (reason := _lost(label.index, stored, rows, occupancy))]
    gone = [label.index for label, _ in lost]
    kept = [label for label in names if label.index not in gone]
    source = {
        "file": image.name,
        "sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
        "shape": list(volume.shape),
        "orientation": axis_codes(volume.affine),
        "voxel_mm": [round(float(size), 4) for size in np.linalg.norm(volume.affine[:3, :3], axis=0)],
        "geometry": "file order" if file_order else "affine",
    }
    labels[np.isin(labels, gone)] = 0
    return Atlas(labels, kept, occupancy[[rows[label.index] for label in kept]], (x, y, z), method, lost, source)


def _lost(index: int, stored: set[int], rows: dict[int, int], occupancy: np.ndarray) -> str:
    if index not in stored:
        return "no voxel in the image"
    if index not in rows:
        return "no voxel on the 2 mm grid"
    return "" if occupancy[rows[index]].any() else "wins no patch"


def totals(atlas: Atlas) -> dict[str, int]:
    """Patches by what lies in them: all, any label, enough of it to be hidden, brain, both brain and label."""
    brain = patch_occupancy(brain_mask(dilated=False).astype(np.int32), atlas.patch)[0] > 0
    labelled = atlas.occupancy.any(axis=0)
    return {
        "regions": len(atlas.regions),
        "groups": len(atlas.groups),
        "lost": len(atlas.lost),
        "patches": len(brain),
        "labelled": int(labelled.sum()),
        "maskable": int(maskable_patches(atlas.occupancy, atlas.patch_voxels).sum()),
        "brain": int(brain.sum()),
        "labelled_brain": int((labelled & brain).sum()),
    }
