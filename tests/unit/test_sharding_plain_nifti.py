"""A mask that is read without nibabel is what nibabel reads; whatever is laid out otherwise is left to nibabel."""

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sharding.corpus import open_corpus
from sharding.errors import CorpusError
from sharding.format import GRID_AFFINE
from sharding.mask import brain_mask
from sharding.mask_image import mask_bytes, read_mask
from sharding.plain_nifti import plain_mask
from tests.helpers.corpora import Segment, write_corpus

ROOT = Path(__file__).resolve().parents[2]


def test_the_brain_is_read_as_nibabel_reads_it(tmp_path):
    file = tmp_path / "mask.nii.gz"
    file.write_bytes(mask_bytes(brain_mask()))
    assert np.array_equal(plain_mask(file), brain_mask())
    assert np.array_equal(read_mask(file), brain_mask())


def with_slope(slope, inter):
    image = nib.Nifti1Image(brain_mask().astype(np.uint8), GRID_AFFINE)
    image.header.set_slope_inter(slope, inter)
    return image.to_bytes()


def of(kind, affine=GRID_AFFINE, header=None, image=nib.Nifti1Image):
    return image(brain_mask().astype(kind), affine, header).to_bytes()


OTHER_LAYOUTS = {
    "int16": lambda: of(np.int16),
    "scaled": lambda: with_slope(0.5, 0.0),
    "with an intercept": lambda: with_slope(1.0, 1.0),
    "big-endian": lambda: of(np.uint8, header=nib.Nifti1Header(endianness=">")),
    "mirrored": lambda: of(np.uint8, GRID_AFFINE @ np.diag([-1.0, 1, 1, 1])),
    "longer": lambda: of(np.uint8) + b"x",
    "cut": lambda: of(np.uint8)[:-1],
    "smaller": lambda: nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), GRID_AFFINE).to_bytes(),
    "NIfTI-2": lambda: of(np.uint8, image=nib.Nifti2Image),
    "noise": lambda: np.random.default_rng(0).bytes(352 + 96**3),
}
"Files of the same brain, and others, that only nibabel knows what to do with."


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_another_layout_is_left_to_nibabel(tmp_path, name):
    file = tmp_path / "mask.nii.gz"
    file.write_bytes(gzip.compress(OTHER_LAYOUTS[name](), 1))
    assert plain_mask(file) is None


def test_a_mask_of_another_layout_opens_and_one_of_another_grid_is_refused(tmp_path):
    folder = write_corpus(tmp_path / "corpus", [Segment(20)])
    mask = read_mask(folder / "mask.nii.gz")
    nib.save(nib.Nifti1Image(mask.astype(np.float32), GRID_AFFINE), folder / "mask.nii.gz")
    assert np.array_equal(open_corpus(folder).mask, mask)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), folder / "mask.nii.gz")
    with pytest.raises(CorpusError, match=r"mask\.nii\.gz: cannot be read .*not the canonical"):
        open_corpus(folder)


def test_a_stream_of_clips_needs_no_imaging_no_http_and_no_scipy(tmp_path):
    program = """
import sys, torch
before = set(sys.modules)
from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream, open_corpora
config = DataConfig(corpus=sys.argv[1])
next(ClipStream(open_corpora(config), config, 20, 1, 1))
heavy = {"nibabel", "nilearn", "scipy", "urllib3", "fsspec", "pandas", "pyarrow.compute", "deepspeed"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    command = [sys.executable, "-c", program, str(write_corpus(tmp_path / "corpus", [Segment(20)]))]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
