"""NIfTI files, opened with every check a header allows and read front to back in chunks of frames.

In: .nii or .nii.gz. Out: an `ImageInfo` and float32 frames (F, voxels) with voxels in file order (x fastest), scaled
by the header's slope and intercept. A gzip stream is read to its end, so that truncation and checksum errors show.
Nothing is brought to a grid here, and never more than a chunk of frames is in memory.
"""

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np

from sharding.errors import InputError, NotASeriesError

try:  # inflates twice as fast; the same bytes and checks
    from isal import igzip as inflate
    from isal.isal_zlib import error as inflate_error
except ImportError:
    import gzip as inflate  # type: ignore[no-redef]
    from zlib import error as inflate_error  # type: ignore[assignment]

DAMAGED = (gzip.BadGzipFile, zlib.error, inflate_error)
"What a damaged gzip stream raises."
NOT_NIFTI = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError, OverflowError)
"What a header that makes no sense raises; OverflowError where it says Inf."

CHUNK_BYTES = 24 * 2**20
"Size of a chunk of frames as float32."
PIECE_BYTES = 2**18
"Read at a time: what is inflated is still in cache when it is put in its place."
MAX_CHUNK_FRAMES = 32
MAX_FRAME_VOXELS = 512**3
"A header that claims more voxels in a volume is taken for damaged."
MAX_DEFLATE_RATIO = 1032
"No deflate stream expands further."

FRAME_UNITS = {8: "sec", 16: "msec", 24: "usec", 32: "hz", 40: "ppm", 48: "rads"}
"Codes of the unit of the fourth axis, as nibabel names them."
FRAME_UNIT_BITS = 0x38
"Of the header's byte xyzt_units; the others are of the unit of space, or mean nothing."


@dataclass(frozen=True)
class ImageInfo:
    """What the header of a 4D image says."""

    path: Path
    shape: tuple[int, int, int]
    "Voxels along the file's axes."
    num_frames: int
    affine: np.ndarray
    "float64 (4, 4): voxel to mm."
    dtype: np.dtype
    "As stored."
    slope: float
    inter: float
    offset: int
    "Bytes before the data in the (decompressed) file."
    frame_step: float
    "The header's spacing of frames, in `frame_unit`."
    frame_unit: str
    space_code: int
    "NIfTI code of the transform that gives the affine: 0 unknown, 1 scanner, 2 aligned, 3 Talairach, 4 MNI152."
    size: int
    "Bytes of the file."
    mtime_ns: int

    @property
    def num_voxels(self) -> int:
        """Voxels of a frame."""
        return math.prod(self.shape)

    @property
    def voxel_mm(self) -> tuple[float, ...]:
        """Voxel edges in mm along the file's axes."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))


def open_image(path: str | Path) -> ImageInfo:
    """Read and check the header of a 4D NIfTI image.

    Raises
    ------
    InputError
        The file is missing, is not NIfTI, holds no series of volumes, or cannot hold what its header claims.
    """
    path = Path(path)
    header = _header_bytes(path)
    info = _known_headers.get(header)
    if info is None:
        info = _opened(path)
        if header and len(_known_headers) < MAX_KNOWN_HEADERS:
            _known_headers[header] = info
    with readable(path):
        stat = path.stat()
    info = replace(info, path=path, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    _check_size(info)
    return info


MAX_KNOWN_HEADERS = 4096

_known_headers: dict[bytes, ImageInfo] = {}
"""Headers met before and what they say: runs of a dataset share theirs, and to check one takes nibabel longer than to
read it."""


def _header_bytes(path: Path) -> bytes:
    """The header of a file as stored, or nothing; whether it is one is for `_opened` to say."""
    _check_name(path)
    with readable(path):
        with path.open("rb", buffering=0) as file:
            start = file.read(4096)
        if path.name.endswith(".gz") and start[:2] == b"\x1f\x8b":
            start = zlib.decompressobj(31).decompress(start, 540)
    size = 540 if b"\x1c\x02" in (start[:2], start[3:1:-1]) else 348  # NIfTI-2 and -1 begin with it, in either order
    return path.suffix.encode() + start[:size] if len(start) >= size else b""


def _opened(path: Path) -> ImageInfo:
    """What the header of an image says, checked, but for the facts of the file."""
    image = _load(path)
    with readable(path):
        return _header_facts(path, image)


def _header_facts(path: Path, image: nib.Nifti1Image) -> ImageInfo:
    proxy: nib.arrayproxy.ArrayProxy = image.dataobj  # type: ignore[assignment]
    header = image.header
    shape, time_axis = _space_and_time(path, tuple(int(n) for n in proxy.shape))
    dtype = np.dtype(proxy.dtype)
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {dtype}, expected integers or real numbers")
    zooms = header.get_zooms()
    return ImageInfo(
        path=path,
        shape=shape,
        num_frames=int(proxy.shape[time_axis]),
        affine=np.asarray(image.affine, dtype=np.float64),
        dtype=dtype,
        slope=float(proxy.slope),
        inter=float(proxy.inter),
        offset=int(proxy.offset),
        frame_step=float(zooms[3]) or float(zooms[time_axis]),
        frame_unit=FRAME_UNITS.get(int(header["xyzt_units"]) & FRAME_UNIT_BITS, "unknown"),
        space_code=int(header["sform_code"]) or int(header["qform_code"]),
        size=0,
        mtime_ns=0,
    )


def read_frames(info: ImageInfo) -> Iterator[np.ndarray]:
    """Yield all frames in order as float32 (F, voxels), voxels in file order; NaN and Inf are left in.

    A chunk is good until the next is asked for: they share memory.

    Raises
    ------
    InputError
        The data end early, the gzip stream is damaged, or the file changed while it was read.
    """
    per_chunk = max(1, min(MAX_CHUNK_FRAMES, CHUNK_BYTES // (4 * info.num_voxels)))
    frame_bytes = info.num_voxels * info.dtype.itemsize
    raw = np.empty((min(per_chunk, info.num_frames), info.num_voxels), dtype=info.dtype)
    with readable(info.path), _stream(info.path) as stream:
        _skip(stream, info.offset)
        for start in range(0, info.num_frames, per_chunk):
            frames = min(per_chunk, info.num_frames - start)
            got = _read_into(stream, raw[:frames].view(np.uint8).reshape(-1).data)
            if got != frames * frame_bytes:
                whole = start + got // frame_bytes
                raise InputError(f"{info.path}: data end after {whole} of {info.num_frames} volumes; copy it again")
            yield _scaled(raw[:frames], info)
        _skip(stream, None)  # gzip compares its checksum only at the end of the stream
        stat = info.path.stat()
    if (stat.st_size, stat.st_mtime_ns) != (info.size, info.mtime_ns):
        raise InputError(f"{info.path}: changed while it was read; build again when nothing writes to it")


@dataclass(frozen=True)
class Volume:
    """A 3D image as stored."""

    values: np.ndarray
    "(voxels,) in file order (x fastest)."
    affine: np.ndarray
    "float64 (4, 4): voxel to mm."
    shape: tuple[int, int, int]


def read_volume(path: str | Path) -> Volume:
    """Read a 3D image: a mask or labels.

    Raises
    ------
    InputError
        The file is missing, is not NIfTI, or has more than one volume.
    """
    path = Path(path)
    image = _load(path)
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: shape {shape}, expected a 3D image")
    with readable(path):
        values = np.asarray(image.dataobj).reshape(-1, order="F")
    return Volume(values, np.asarray(image.affine, dtype=np.float64), shape[:3])  # type: ignore[arg-type]


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the many errors of a damaged or absent file into one `InputError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except EOFError as error:
        raise InputError(f"{path}: gzip stream is truncated; copy it again") from error
    except DAMAGED as error:  # type: ignore[misc]  # isal has no types
        raise InputError(f"{path}: gzip stream is damaged ({error}); copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except NOT_NIFTI as error:
        raise InputError(f"{path}: not a readable NIfTI image ({_one_line(error)})") from error


def _load(path: Path) -> nib.Nifti1Image:
    _check_name(path)
    with readable(path):
        with path.open("rb") as file:
            start = file.read(8)
        if path.name.endswith(".gz") and start[:2] != b"\x1f\x8b":
            raise InputError(f"{path}: named .gz but not gzip data (it starts with {start!r})")
        image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is a subclass
        raise InputError(f"{path}: {type(image).__name__}, expected NIfTI")
    _check_offset(path, image)
    return image


def _check_offset(path: Path, image: nib.Nifti1Image) -> None:
    """Refuse voxels that begin inside the header: nibabel takes the offset 0 of a single file at its word."""
    offset = int(image.dataobj.offset)  # type: ignore[attr-defined]
    if offset < type(image.header).single_vox_offset:
        raise InputError(
            f"{path}: its header says the voxels begin at byte {offset}, inside the header; repair or write the image "
            "anew"
        )


def _check_name(path: Path) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: expected a NIfTI file, .nii or .nii.gz")


def _space_and_time(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Spatial shape and the axis of time; a fifth axis is let through where it or the fourth is single."""
    long_axes = [axis for axis in range(3, len(shape)) if shape[axis] != 1]
    if len(shape) < 3 or min(shape, default=0) < 1:
        raise InputError(f"{path}: shape {shape} holds no image")
    if not long_axes:
        raise NotASeriesError(f"{path}: a 3D image (one volume of {shape[:3]}); a series of volumes is needed")
    if len(long_axes) > 1:
        raise InputError(f"{path}: shape {shape} has more than one axis beside space; split it into 4D images")
    return shape[:3], long_axes[0]  # type: ignore[return-value]


def _check_size(info: ImageInfo) -> None:
    if info.num_voxels > MAX_FRAME_VOXELS:
        raise InputError(f"{info.path}: header claims {info.num_voxels:,} voxels a volume; it is probably damaged")
    needed = info.offset + info.num_frames * info.num_voxels * info.dtype.itemsize
    most = info.size * MAX_DEFLATE_RATIO if info.path.name.endswith(".gz") else info.size
    if needed > most:
        raise InputError(
            f"{info.path}: {info.size:,} bytes cannot hold the {needed:,} its header claims; copy it again"
        )


def _stream(path: Path) -> IO[bytes]:
    return inflate.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _read_into(stream: IO[bytes], data: memoryview) -> int:
    """Fill `data` from a stream as far as it goes; return the bytes read."""
    got = 0
    while got < len(data):
        more = stream.readinto(data[got : got + PIECE_BYTES])  # type: ignore[attr-defined]
        if not more:
            break
        got += more
    return got


def _skip(stream: IO[bytes], num_bytes: int | None) -> None:
    """Read on over `num_bytes`, or to the end."""
    left = num_bytes
    while left is None or left > 0:
        data = stream.read(2**20 if left is None else min(left, 2**20))
        if not data:
            return
        left = None if left is None else left - len(data)


def _scaled(raw: np.ndarray, info: ImageInfo) -> np.ndarray:
    if info.slope == 1 and info.inter == 0:
        return raw.astype(np.float32, copy=False)
    return (raw.astype(np.float64) * info.slope + info.inter).astype(np.float32)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
