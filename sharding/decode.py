"""A stored run, or a segment of it, back as NIfTI, to be looked at in any viewer.

In: a corpus and a key. Out: a 4D float32 image on the canonical grid, in the source's units, 0 outside the mask. What
comes back is what a model is trained on: resampled, quantised; the source file is not needed.
"""

import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
import xxhash

from sharding.corpus import Corpus
from sharding.errors import CorpusError, InputError
from sharding.format import BOLD_SUFFIX, GRID_AFFINE, GRID_SHAPE, MEMBER_COLUMNS, SCALE_SUFFIX
from sharding.quantise import decode
from sharding.write import sync_folder, unfinished

FRAMES_AT_A_TIME = 16


def write_decoded(corpus: Corpus, key: str, out: Path) -> int:
    """Write a segment, or all segments of a run, as NIfTI; return the frames written.

    Parameters
    ----------
    corpus
        An opened corpus.
    key
        Of a sample; or a run's part of it (all before the last __), for the whole run.
    out
        .nii or .nii.gz; appears only when whole.

    Raises
    ------
    InputError
        No such key, or a file name of another kind.
    CorpusError
        The stored bytes are not what the index says, or the file cannot be written.
    """
    if not out.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{out}: expected a name that ends in .nii or .nii.gz")
    rows = _rows(corpus, key)
    frames = int(sum(corpus.index["n_frames"][row] for row in rows))
    header = _header(frames, float(corpus.index["tr"][rows[0]]))
    tmp = unfinished(out)
    try:
        with _opened(tmp, out.name.endswith(".gz")) as file:
            file.write(header)
            for row in rows:
                for frame in _signals(corpus, row):
                    volume = np.zeros(GRID_SHAPE, dtype="<f4")
                    volume.ravel()[corpus.mask_index] = frame
                    file.write(volume.tobytes(order="F"))
        tmp.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise CorpusError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from error
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            tmp.unlink()
    return frames


def read_member(corpus: Corpus, row: int, suffix: str) -> np.ndarray:
    """Return a .npy member of a sample as an array, its bytes checked.

    Raises
    ------
    CorpusError
        It cannot be read, or is not what the index says.
    """
    stem, index = MEMBER_COLUMNS[suffix], corpus.index
    shard, size = corpus.shard_path(index["shard"][row]), int(index[f"{stem}_bytes"][row])
    try:
        with shard.open("rb") as file:
            file.seek(int(index[f"{stem}_offset"][row]))
            data = file.read(size)
    except OSError as error:
        raise CorpusError(f"{shard}: cannot be read ({error.strerror or error})") from error
    if xxhash.xxh3_64_intdigest(data) != index[f"{stem}_xxh3"][row]:
        raise CorpusError(f"{shard}: {index['key'][row]}{suffix} is damaged; see: fmri-shards verify --deep")
    return np.load(io.BytesIO(data), allow_pickle=False)


def _rows(corpus: Corpus, key: str) -> list[int]:
    keys = corpus.index["key"]
    rows = [row for row, name in enumerate(keys) if name == key or name.rpartition("__")[0] == key]
    if not rows:
        raise InputError(f"{corpus.path}: no sample or run {key!r}; keys are such as {keys[0]!r}")
    return sorted(rows, key=lambda row: corpus.index["start_frame"][row])


def _signals(corpus: Corpus, row: int) -> Iterator[np.ndarray]:
    """Frames of a sample, float32 (V,)."""
    codes, scale = read_member(corpus, row, BOLD_SUFFIX), read_member(corpus, row, SCALE_SUFFIX)
    for start in range(0, len(codes), FRAMES_AT_A_TIME):
        yield from decode(codes[start : start + FRAMES_AT_A_TIME], scale, float(corpus.index["unit"][row]))


def _header(frames: int, tr: float) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype("<f4")
    header.set_data_shape((*GRID_SHAPE, frames))
    header.set_sform(GRID_AFFINE, code=4)
    header.set_qform(GRID_AFFINE, code=4)
    header.set_xyzt_units("mm", "sec")
    header.set_zooms((2, 2, 2, tr))
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, 1, 0
    header["magic"] = b"n+1"
    return header.binaryblock + bytes(4)  # no extension follows


@contextlib.contextmanager
def _opened(path: Path, compressed: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if not compressed:
            yield file
            return
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=1) as stream:
            yield stream  # type: ignore[misc]
