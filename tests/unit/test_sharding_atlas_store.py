"""An atlas folder: regions in their patches and on their side, the published vote, nothing lost or changed unseen."""

import json
import os
import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sharding.atlas import Label, load_label_image_on_grid, load_labels_tsv, patch_occupancy, voted
from sharding.atlas.fetch import fetch_atlas
from sharding.atlas.make import make_atlas, totals
from sharding.atlas.store import load_atlas
from sharding.atlas.summary import describe_atlas, side_of, wrong_sides
from sharding.cli import main
from sharding.errors import InputError
from sharding.format import GRID_AFFINE
from tests.helpers.images import save

ORIGIN = np.array([-90.0, -126.0, -72.0])
BOXES = {
    1: ("Motor_L", "motor", (-40, -20, 50), (14, 10, 12)),
    2: ("Motor_R", "motor", (40, -20, 50), (14, 10, 12)),
    3: ("Visual_L", "visual", (-14, -84, 4), (12, 10, 10)),
    7: ("Visual_R", "visual", (14, -84, 4), (12, 10, 10)),
    9: ("Speck_R", "visual", (20, -84, 4), (1, 1, 1)),
}


def image() -> nib.Nifti1Image:
    """Boxes on the MNI152 2 mm lattice, in RAS; a speck of one voxel lies in one of them."""
    mm = np.moveaxis(np.indices((91, 109, 91)), 0, -1) * 2.0 + ORIGIN
    labels = np.zeros(mm.shape[:3], dtype=np.uint8)
    for value, (_, _, centre, half) in BOXES.items():
        labels[(np.abs(mm - centre) <= half).all(axis=-1)] = value
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = ORIGIN
    return nib.Nifti1Image(labels, affine)


def stored(codes: str) -> nib.Nifti1Image:
    turn = nib.orientations.ornt_transform(nib.io_orientation(image().affine), nib.orientations.axcodes2ornt(codes))
    return image().as_reoriented(turn)


def table() -> list[Label]:
    return [Label(value, name, group) for value, (name, group, _, _) in BOXES.items()] + [Label(50, "Nowhere")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder made by the command from a LAS copy."""
    home = tmp_path_factory.mktemp("atlas")
    rows = "".join(f"{label.index}\t{label.name}\t{label.group}\n" for label in table())
    (home / "labels.tsv").write_text("index\tname\tgroup\n" + rows)
    path = save(stored("LAS"), home, "las.nii.gz")
    assert main(["atlas", str(path), "--labels", str(home / "labels.tsv"), "--patch", "6", "--out", f"{home}/a"]) == 0
    return home / "a"


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LIA"])
def test_every_storage_order_gives_the_same_folder(folder: Path, tmp_path: Path, codes: str) -> None:
    path = save(stored(codes), tmp_path, "copy.nii.gz")
    out = tmp_path / "out"
    assert main(["atlas", str(path), "--labels", str(folder.parent / "labels.tsv"), "--out", str(out)]) == 0
    for name in ("labels.nii.gz", "occupancy.npy", "regions.tsv"):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name


def test_folder_gives_back_what_was_made(folder: Path) -> None:
    made = make_atlas(folder.parent / "las.nii.gz", table(), (6, 6, 6))
    read = load_atlas(folder)
    np.testing.assert_array_equal(read.labels, made.labels)
    np.testing.assert_array_equal(read.occupancy, made.occupancy)
    np.testing.assert_array_equal(read.occupancy, patch_occupancy(read.labels, (6, 6, 6)))
    assert read.regions == made.regions == table()[:-1]
    assert read.groups == ["motor", "visual"]
    assert read.lost == made.lost == [(Label(50, "Nowhere"), "no voxel in the image")]
    assert load_labels_tsv(folder / "regions.tsv") == read.regions
    np.testing.assert_array_equal(load_label_image_on_grid(folder / "labels.nii.gz"), read.labels)


def test_regions_lie_on_the_side_their_name_says(folder: Path) -> None:
    atlas = load_atlas(folder)
    for region in atlas.regions:
        x_mm = nib.affines.apply_affine(GRID_AFFINE, np.argwhere(atlas.labels == region.index))[:, 0].mean()
        assert x_mm * (-1 if region.name.endswith("_L") else 1) > 0
        centre = nib.affines.apply_affine(GRID_AFFINE, 6 * np.argwhere(_grid(atlas, region.index)) + 2.5)[:, 0]
        assert centre.mean() * side_of(region.name) > 0, "the patches of the region as well"
    assert wrong_sides(atlas) == (5, [])


def _grid(atlas, index: int) -> np.ndarray:
    row = [region.index for region in atlas.regions].index(index)
    return atlas.occupancy[row].reshape(16, 16, 16)


def test_a_mirrored_atlas_is_called_wrong(tmp_path: Path) -> None:
    mirrored = make_atlas(save(stored("LAS"), tmp_path, "a.nii.gz"), table(), (6, 6, 6), file_order=True)
    assert wrong_sides(mirrored) == (5, ["Motor_L", "Motor_R", "Visual_L", "Visual_R", "Speck_R"])
    assert "WRONG: 5 of 5" in describe_atlas(mirrored)


@pytest.mark.parametrize(
    ("name", "side"), [("Precentral_L", -1), ("7Networks_RH_Vis_1", 1), ("Left Angular Gyrus", -1), ("R G_cuneus", 1),
                       ("Vermis_3", 0), ("Lingual", 0), ("Left_to_Right", 0)]
)  # fmt: skip
def test_sides_are_read_from_names(name: str, side: int) -> None:
    assert side_of(name) == side


def test_vote_is_the_published_map(tmp_path: Path) -> None:
    atlas = make_atlas(save(image(), tmp_path, "a.nii.gz"), table(), (6, 6, 6), "vote")
    labels = load_label_image_on_grid(tmp_path / "a.nii.gz")
    for patch in range(16**3):
        i, j, k = (6 * n for n in np.unravel_index(patch, (16, 16, 16)))
        block = labels[i : i + 6, j : j + 6, k : k + 6]
        values, counts = np.unique(block[block > 0], return_counts=True)
        winner = values[counts.argmax()] if len(values) else 0
        ours = [region.index for row, region in enumerate(atlas.regions) if atlas.occupancy[row, patch]]
        assert ours == ([winner] if winner else [])
    assert set(np.unique(atlas.occupancy)) == {0, 216}
    assert (Label(9, "Speck_R", "visual"), "wins no patch") in atlas.lost
    assert 9 not in atlas.labels


def test_equal_votes_go_to_the_lower_label() -> None:
    assert voted(np.array([[3, 0, 1], [3, 0, 2]]), 8).tolist() == [[8, 0, 0], [0, 0, 8]]


def test_file_order_is_the_affines_order_where_the_file_is_ras(tmp_path: Path) -> None:
    path = save(image(), tmp_path, "a.nii.gz")
    np.testing.assert_array_equal(load_label_image_on_grid(path, file_order=True), load_label_image_on_grid(path))
    coarse = nib.Nifti1Image(np.asarray(image().dataobj)[::2, ::2, ::2], image().affine @ np.diag([2, 2, 2, 1]))
    with pytest.raises(InputError, match=r"voxels of 4 x 4 x 4 mm; file order needs a 2 mm image"):
        load_label_image_on_grid(save(coarse, tmp_path, "c.nii.gz"), file_order=True)


def test_summary_counts_what_the_matrix_holds(folder: Path) -> None:
    atlas = load_atlas(folder)
    found, text = totals(atlas), (folder / "summary.txt").read_text()
    assert found["labelled"] == np.count_nonzero(atlas.occupancy.sum(axis=0))
    assert found["maskable"] == np.count_nonzero(atlas.occupancy.sum(axis=0) >= 54)
    assert f"tokens    {found['labelled']} of 4,096" in text
    assert "regions   5 kept, 1 lost, 2 groups" in text
    assert "small     1 regions decide no patch alone" in text
    assert "lost      Nowhere (50): no voxel in the image" in text
    assert "group     motor: 2 regions" in text
    assert (folder / "atlas.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["labels.nii.gz", "occupancy.npy", "regions.tsv", "atlas.json"])
def test_a_changed_byte_is_found(folder: Path, tmp_path: Path, name: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    place = data.index(b"weighted") if name == "atlas.json" else len(data) // 2
    data[place] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: not as it was written"):
        load_atlas(tmp_path)


def test_an_atlas_is_not_replaced_unless_told(folder: Path, tmp_path: Path, capsys) -> None:
    path = str(save(image(), tmp_path, "a.nii.gz"))
    out = tmp_path / "out"
    assert main(["atlas", path, "--out", str(out)]) == 0
    assert main(["atlas", path, "--out", str(out), "--patch", "8"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["atlas", path, "--out", str(out), "--patch", "8,8,12", "--overwrite"]) == 0
    assert load_atlas(out).patch == (8, 8, 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "out"], "nothing unfinished is left"
    assert main(["atlas", path, "--out", str(out), "--patch", "7", "--overwrite"]) == 2
    assert "patch (7, 7, 7) does not divide" in capsys.readouterr().err
    assert json.loads((out / "atlas.json").read_text())["patch"] == [8, 8, 12]


def test_fetched_atlas_names_its_regions_and_networks(tmp_path: Path, monkeypatch) -> None:
    path = save(image(), tmp_path, "schaefer.nii.gz")
    bunch = {"maps": str(path), "labels": [b"7Networks_LH_Vis_1", b"7Networks_RH_SomMot_2"]}
    fetchers = types.SimpleNamespace(fetch_atlas_schaefer_2018=lambda n_rois, resolution_mm, verbose: bunch)
    monkeypatch.setitem(sys.modules, "nilearn.datasets", fetchers)
    monkeypatch.setattr("nilearn.datasets", fetchers, raising=False)
    file, labels = fetch_atlas("schaefer", 100)
    assert file == path
    assert labels == [Label(1, "7Networks_LH_Vis_1", "Vis"), Label(2, "7Networks_RH_SomMot_2", "SomMot")]
    with pytest.raises(InputError, match="schaefer with 150 regions"):
        fetch_atlas("schaefer", 150)


def test_an_atlas_fetched_into_memory_is_kept_beside_its_source(tmp_path: Path, monkeypatch, capsys) -> None:
    bunch = {"maps": image(), "filename": str(tmp_path / "ho.nii.gz"), "labels": ["Background", "Left A", "Right A"]}
    monkeypatch.setattr("nilearn.datasets.fetch_atlas_harvard_oxford", lambda name, symmetric_split, verbose: bunch)
    file, labels = fetch_atlas("harvard_oxford")
    assert file.parent == tmp_path
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), np.asarray(image().dataobj))
    assert labels == [Label(1, "Left A"), Label(2, "Right A")]
    bunch["filename"] = str(tmp_path / "no" / "folder.nii.gz")
    assert main(["atlas", "--nilearn", "harvard_oxford", "--out", str(tmp_path / "out")]) == 2
    assert "make nilearn's data folder writable" in capsys.readouterr().err


def test_no_network_is_one_clear_line(monkeypatch, tmp_path: Path, capsys) -> None:
    def offline(**_):
        raise ConnectionError("Max retries exceeded")

    monkeypatch.setattr("nilearn.datasets.fetch_atlas_aal", offline)
    assert main(["atlas", "--nilearn", "aal", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "aal: could not be fetched (ConnectionError: Max retries exceeded)" in message
    assert "give the image and its table by path" in message
    assert main(["atlas", "--out", str(tmp_path / "out")]) == 2
    assert "give IMAGE, or --nilearn NAME" in capsys.readouterr().err


@pytest.mark.skipif("FMRI_SCALE_AAL3" not in os.environ, reason="FMRI_SCALE_AAL3 names no AAL3 label image")
def test_aal3_loses_what_the_published_map_loses() -> None:
    image_path = Path(os.environ["FMRI_SCALE_AAL3"])
    published = make_atlas(image_path, [], (6, 6, 6), "vote", file_order=True)
    assert (len(published.regions), len(published.lost)) == (138, 28)
    assert totals(published)["labelled"] == 1442
    assert len(make_atlas(image_path, [], (6, 6, 6)).regions) == 166
