"""What opening a corpus takes, and which masks it takes."""

import errno
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding.corpus import open_corpus
from sharding.errors import CorpusError
from sharding.format import GRID_AFFINE
from sharding.inspect import describe
from sharding.mask_image import read_mask
from tests.helpers.corpora import Segment, write_corpus

ROOT = Path(__file__).resolve().parents[2]


def test_a_mask_of_another_layout_opens_and_one_of_another_grid_is_refused(tmp_path):
    folder = write_corpus(tmp_path / "corpus", [Segment(20)])
    mask = read_mask(folder / "mask.nii.gz")
    nib.save(nib.Nifti1Image(mask.astype(np.float32), GRID_AFFINE), folder / "mask.nii.gz")
    assert np.array_equal(open_corpus(folder).mask, mask)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), folder / "mask.nii.gz")
    with pytest.raises(CorpusError, match=r"mask\.nii\.gz: grid .* is not the canonical"):
        open_corpus(folder)


def test_a_mask_with_any_damaged_byte_is_one_line_or_the_same_mask(tmp_path):
    folder = write_corpus(tmp_path / "corpus", [Segment(20)])
    path = folder / "mask.nii.gz"
    whole, mask = path.read_bytes(), open_corpus(folder).mask
    said = []
    for place in range(10, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert np.array_equal(open_corpus(folder).mask, mask)
        except CorpusError as error:
            said.append(str(error))
    assert len(said) > 30
    assert all("mask.nii.gz" in line for line in said)


def test_a_stream_of_clips_needs_no_http_no_tables_and_no_training(tmp_path):
    program = """
import sys, torch
before = set(sys.modules)
from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream, open_corpora
config = DataConfig(corpus=sys.argv[1])
next(ClipStream(open_corpora(config), config, 20, 1, 1))
heavy = {"nilearn", "urllib3", "fsspec", "pandas", "pyarrow.compute", "deepspeed"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    command = [sys.executable, "-c", program, str(write_corpus(tmp_path / "corpus", [Segment(20)]))]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_facts_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    folder = write_corpus(tmp_path / "corpus", [Segment(20)])

    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CorpusError, match=r"corpus\.json: cannot be read \(Permission denied\); check its permissions"):
        open_corpus(folder)


def _of_others(file: Path) -> None:
    pq.write_table(pa.table({"other": [1]}), file)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"short"), _of_others])
def test_runs_that_cannot_be_read_are_named(tmp_path, damage):
    folder = write_corpus(tmp_path / "corpus", [Segment(20)])
    (folder / "runs.parquet").touch()
    damage(folder / "runs.parquet")
    with pytest.raises(CorpusError, match=r"runs\.parquet: cannot be read \(.*; restore it or build the corpus again"):
        describe(open_corpus(folder))
