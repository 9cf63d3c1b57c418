"""Reading NIfTI: what a header may say, what a stream may hold, and that every fault is named."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sharding import read
from sharding.errors import InputError, NotASeriesError
from sharding.read import open_image, read_frames, read_volume
from sharding.timing import repetition_time
from tests.helpers.images import head, save, with_header

RNG = np.random.default_rng(0)


def all_frames(path: Path) -> np.ndarray:
    return np.concatenate([chunk.copy() for chunk in read_frames(open_image(path))])


def series(shape: tuple[int, ...] = (5, 6, 7, 40), dtype: type = np.int16) -> nib.Nifti1Image:
    data = RNG.integers(0, 100, shape).astype(dtype)
    return with_header(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), 2.0)


def flat(data: np.ndarray) -> np.ndarray:
    """(frames, voxels) with x fastest."""
    return np.moveaxis(data, -1, 0).reshape(data.shape[-1], -1, order="F")


def test_frames_and_faults_are_the_same_without_isal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(series(dtype=np.float32), tmp_path, "a.nii.gz")
    with_isal = all_frames(path)
    monkeypatch.setattr(read, "inflate", gzip)
    np.testing.assert_array_equal(all_frames(path), with_isal)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"gzip stream is (damaged|truncated)"):
        all_frames(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("chunk_bytes", [1, 5 * 6 * 7 * 4 * 7, 2**30])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_chunks_join_to_the_file_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk_bytes: int, dtype: type
) -> None:
    monkeypatch.setattr(read, "CHUNK_BYTES", chunk_bytes)
    image = series(dtype=dtype)
    path = save(image, tmp_path, name)
    np.testing.assert_array_equal(all_frames(path), flat(np.asarray(image.dataobj)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_slope_and_intercept_are_applied_as_nibabel_does(tmp_path: Path, dtype: type) -> None:
    image = series(dtype=dtype)
    path = save(image, tmp_path, "a.nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0.25, -3.0], dtype="<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    np.testing.assert_allclose(all_frames(path), flat(nib.load(path).get_fdata()), rtol=1e-6)
    assert open_image(path).slope == 0.25


def test_big_endian_file_is_read(tmp_path: Path) -> None:
    data = RNG.integers(0, 100, (4, 4, 4, 5)).astype(">i2")
    image = nib.Nifti1Image(data, np.eye(4), header=nib.Nifti1Header(endianness=">"))
    path = save(with_header(image, 2.0), tmp_path, "a.nii")
    np.testing.assert_array_equal(all_frames(path), flat(data))


@pytest.mark.parametrize("shape", [(5, 6, 7, 1, 12), (5, 6, 7, 12, 1)])
def test_five_axes_with_a_single_one_are_a_series(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = series(shape)
    path = save(image, tmp_path, "a.nii.gz")
    info = open_image(path)
    assert info.num_frames == 12
    np.testing.assert_array_equal(all_frames(path), flat(np.asarray(image.dataobj).reshape(5, 6, 7, 12)))
    assert repetition_time(info) == (2.0, "header")


@pytest.mark.parametrize(
    ("shape", "reason"), [((5, 6, 7), "3D image"), ((5, 6, 7, 1), "3D image"), ((5, 6, 7, 2, 3), "more than one axis")]
)
def test_what_is_no_series_is_refused(tmp_path: Path, shape: tuple[int, ...], reason: str) -> None:
    path = save(nib.Nifti1Image(np.ones(shape, dtype=np.int16), np.eye(4)), tmp_path, "a.nii")
    with pytest.raises(InputError, match=reason) as caught:
        open_image(path)
    assert isinstance(caught.value, NotASeriesError) == (reason == "3D image")


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    path = save(nib.Nifti1Image(np.ones((4, 4, 4, 5), dtype=np.complex64), np.eye(4)), tmp_path, "a.nii")
    with pytest.raises(InputError, match="complex64"):
        open_image(path)


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = save(head(), tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=rf"{path}: .*truncated"):
        all_frames(path)


def test_wrong_checksum_is_found_though_all_volumes_can_be_read(tmp_path: Path) -> None:
    path = save(series(), tmp_path, "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # the CRC of the stream
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"{path}: gzip stream is damaged"):
        all_frames(path)


def test_altered_byte_inside_a_gzip_is_found(tmp_path: Path) -> None:
    path = save(series(), tmp_path, "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(InputError, match=str(path)):
        all_frames(path)


def test_short_uncompressed_file_is_refused_before_reading(tmp_path: Path) -> None:
    path = save(series(), tmp_path, "a.nii")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot hold"):
        open_image(path)


def test_gzip_whose_content_is_short_says_how_far_it_goes(tmp_path: Path) -> None:
    path = save(series(), tmp_path, "a.nii.gz")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: -5 * 6 * 7 * 2 * 3]))
    with pytest.raises(InputError, match="data end after 37 of 40 volumes"):
        all_frames(path)


def test_header_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    path = save(series(), tmp_path, "a.nii")
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.array([30000] * 3, dtype="<i2").tobytes()  # dim[1..3]
    path.write_bytes(raw)
    with pytest.raises(InputError, match="header claims"):
        open_image(path)


def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = save(series(), tmp_path, "a.nii")
    info = open_image(path)
    frames = read_frames(info)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="changed while it was read"):
        list(frames)


def test_missing_file_and_foreign_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path / "a.nii.gz")
    text = tmp_path / "b.nii.gz"
    text.write_text("this is no image\n" * 100)
    with pytest.raises(InputError, match="not gzip data"):
        open_image(text)
    plain = tmp_path / "c.nii"
    plain.write_text("this is no image\n" * 100)
    with pytest.raises(InputError, match=r"c\.nii: not a readable NIfTI image"):
        open_image(plain)
    zipped = tmp_path / "d.nii.gz"
    zipped.write_bytes(gzip.compress(b"this is no image\n" * 100))
    with pytest.raises(InputError, match=r"d\.nii\.gz: not a readable NIfTI image"):
        open_image(zipped)
    with pytest.raises(InputError, match=r"expected a NIfTI file, \.nii or \.nii\.gz"):
        open_image(tmp_path / "e.mgz")


@pytest.mark.parametrize("name", ["{}.nii", "{}.nii.gz"])
def test_files_with_the_same_header_keep_their_own_facts(tmp_path: Path, name: str) -> None:
    first = save(series(), tmp_path, name.format("first"))
    second = save(series(), tmp_path, name.format("second"))
    other = save(series(shape=(5, 6, 7, 41)), tmp_path, name.format("other"))
    infos = [open_image(path) for path in (first, second, other)]
    assert [info.path for info in infos] == [first, second, other]
    assert [info.num_frames for info in infos] == [40, 40, 41]
    assert [info.mtime_ns for info in infos] == [path.stat().st_mtime_ns for path in (first, second, other)]
    for path in (first, second):
        np.testing.assert_array_equal(all_frames(path), flat(np.asarray(nib.load(path).dataobj)))
    second.write_bytes(second.read_bytes()[:400])  # a known header does not stand for data that are there
    if name.endswith(".nii"):
        with pytest.raises(InputError, match=r"second\.nii: 400 bytes cannot hold"):
            open_image(second)
    else:
        with pytest.raises(InputError, match="truncated"):
            all_frames(second)


def test_headers_that_begin_far_into_their_file_are_not_mixed_up(tmp_path: Path) -> None:
    frames = []
    for number in (40, 41):
        data = save(series(shape=(5, 6, 7, number)), tmp_path, f"{number}.nii").read_bytes()
        packed = gzip.compress(data)
        extra = (5000).to_bytes(2, "little") + bytes(5000)  # a field of the gzip header, as some tools write
        path = tmp_path / f"{number}.nii.gz"
        path.write_bytes(packed[:3] + bytes([packed[3] | 4]) + packed[4:10] + extra + packed[10:])
        frames.append(open_image(path).num_frames)
    assert frames == [40, 41]


def test_mask_of_four_axes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a 3D image"):
        read_volume(save(series(), tmp_path, "a.nii"))


def altered(path: Path, place: int, data: bytes) -> Path:
    """The file with other bytes at a place of its header."""
    raw = bytearray(path.read_bytes())
    raw[place : place + len(data)] = data
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("code", "unit"), [(7, "unknown"), (64, "unknown"), (80, "msec"), (63, "unknown"), (10, "sec"), (34, "hz")]
)
def test_unit_of_time_is_read_whatever_the_other_bits_say(tmp_path: Path, code: int, unit: str) -> None:
    path = altered(save(series(), tmp_path, "a.nii"), 123, bytes([code]))
    assert open_image(path).frame_unit == unit


@pytest.mark.parametrize("code", [0, 8, 16, 24, 32, 40, 48])
def test_units_of_time_are_named_as_nibabel_does(tmp_path: Path, code: int) -> None:
    path = altered(save(series(), tmp_path, "a.nii"), 123, bytes([code | 2]))
    assert open_image(path).frame_unit == nib.load(path).header.get_xyzt_units()[1]


@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan])
def test_offset_that_is_no_number_is_refused(tmp_path: Path, offset: float) -> None:
    path = altered(save(series(), tmp_path, "a.nii"), 108, np.float32(offset).tobytes())
    for opened in (open_image, read_volume):
        with pytest.raises(InputError, match=r"a\.nii: not a readable NIfTI image"):
            opened(path)


@pytest.mark.parametrize(("kind", "place"), [(nib.Nifti1Image, 108), (nib.Nifti2Image, 168)])
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_that_begin_inside_the_header_are_refused(tmp_path: Path, kind: type, place: int, packed: bool) -> None:
    image = kind(np.zeros((5, 6, 7, 40), dtype=np.int16), np.eye(4))
    path = altered(save(image, tmp_path, "a.nii"), place, bytes(4))
    if packed:
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    for opened in (open_image, read_volume):
        with pytest.raises(InputError, match="voxels begin at byte 0, inside the header; repair or write"):
            opened(path)
