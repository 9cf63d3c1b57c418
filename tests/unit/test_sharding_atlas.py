"""Atlases: the same labels from every storage order, in their place, with patches counted exactly."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sharding.atlas import Label, load_label_image_on_grid, load_labels_tsv, patch_occupancy, region_labels
from sharding.errors import InputError
from sharding.format import GRID_AFFINE
from tests.helpers.images import save


def atlas(voxel_mm: float = 2.0, dtype: type = np.uint8) -> nib.Nifti1Image:
    """Boxes left (1), right (2) and at the back (700, far from the others), in RAS."""
    origin = np.array([-90.0, -126.0, -72.0])
    shape = tuple(int(n) for n in np.array([180, 216, 180]) // voxel_mm + 1)
    mm = np.moveaxis(np.indices(shape), 0, -1) * voxel_mm + origin
    labels = np.zeros(shape, dtype=dtype)
    for value, centre in ((1, (-40, -20, 40)), (2, (40, -20, 40)), (70, (0, -90, 0))):
        labels[(np.abs(mm - centre) <= [12, 10, 8]).all(axis=-1)] = value
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = origin
    return nib.Nifti1Image(labels, affine)


def turned(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    return image.as_reoriented(turn)


@pytest.mark.parametrize("voxel_mm", [2.0, 1.0, 3.0])
def test_every_storage_order_gives_the_same_labels(tmp_path: Path, voxel_mm: float) -> None:
    image = atlas(voxel_mm)
    first = load_label_image_on_grid(save(image, tmp_path, "ras.nii.gz"))
    assert first.dtype == np.int32
    assert list(region_labels(first)) == [1, 2, 70]
    for codes in ("LAS", "LIA", "PSR"):
        other = load_label_image_on_grid(save(turned(image, codes), tmp_path, f"{codes}.nii.gz"))
        np.testing.assert_array_equal(other, first)


def test_labels_lie_where_they_are_in_mm(tmp_path: Path) -> None:
    labels = load_label_image_on_grid(save(turned(atlas(), "LAS"), tmp_path, "a.nii.gz"))
    for value, centre in ((1, (-40, -20, 40)), (2, (40, -20, 40)), (70, (0, -90, 0))):
        mm = nib.affines.apply_affine(GRID_AFFINE, np.argwhere(labels == value))
        np.testing.assert_allclose(mm.mean(axis=0), centre)
        assert len(mm) == 13 * 11 * 9


def test_float_labels_are_taken_if_whole(tmp_path: Path) -> None:
    image = atlas()
    whole = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    np.testing.assert_array_equal(
        load_label_image_on_grid(save(whole, tmp_path, "f.nii.gz")),
        load_label_image_on_grid(save(image, tmp_path, "i.nii.gz")),
    )
    halves = nib.Nifti1Image(np.asarray(image.dataobj) * np.float32(0.5), image.affine)
    with pytest.raises(InputError, match="not whole numbers"):
        load_label_image_on_grid(save(halves, tmp_path, "h.nii.gz"))


def test_atlas_elsewhere_is_refused(tmp_path: Path) -> None:
    far = atlas()
    far = nib.Nifti1Image(np.asarray(far.dataobj), far.affine + np.array([[0, 0, 0, 900]] + [[0] * 4] * 3))
    with pytest.raises(InputError, match="must be in MNI152 space"):
        load_label_image_on_grid(save(far, tmp_path, "a.nii.gz"))


def test_occupancy_counts_every_voxel_once(tmp_path: Path) -> None:
    labels = load_label_image_on_grid(save(atlas(), tmp_path, "a.nii.gz"))
    filled = patch_occupancy(labels, (6, 6, 6))
    assert filled.shape == (3, 16**3)
    assert filled.dtype == np.int32
    assert filled.sum(axis=1).tolist() == [(labels == value).sum() for value in (1, 2, 70)]
    assert filled.sum(axis=0).max() <= 6**3
    for patch in (1187, 2000, int(filled[1].argmax())):
        i, j, k = (6 * n for n in np.unravel_index(patch, (16, 16, 16)))
        block = labels[i : i + 6, j : j + 6, k : k + 6]
        assert filled[:, patch].tolist() == [(block == value).sum() for value in (1, 2, 70)]


@pytest.mark.parametrize("patch", [(7, 6, 6), (6, 6), (6, 6, 6, 1)])
def test_patch_that_does_not_divide_the_grid_is_refused(patch: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="does not divide"):
        patch_occupancy(np.zeros((96, 96, 96), dtype=np.int32), patch)


def test_table_gives_names_and_groups(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("index\tname\tgroup\n2\tright\tmotor\n1\tleft\t\n")
    assert load_labels_tsv(tmp_path / "labels.tsv") == [Label(1, "left", ""), Label(2, "right", "motor")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id\tname\n1\ta\n", "expected tab-separated columns"),
        ("index\tname\n1\ta\n1\tb\n", "row 2: label 1 is named twice"),
        ("index\tname\none\ta\n", "row 1: index is 'one'"),
    ],
)
def test_table_that_cannot_be_used_names_the_row(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(InputError, match=reason):
        load_labels_tsv(tmp_path / "labels.tsv")
