"""Trust: every changed, missing or cut byte of a corpus is found and named; index and images come back from tars."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding.build import build_corpus
from sharding.cli import main
from sharding.corpus import CHECKED_FILES, Corpus, is_sealed, open_corpus
from sharding.discover import find_runs
from sharding.finish import write_sealed
from sharding.format import GRID_AFFINE, MEMBER_COLUMNS, RUNS_SCHEMA
from sharding.index import corpus_id, table_bytes
from sharding.plan import BuildSettings
from sharding.prepare import PreprocessingSettings, prepare_run
from sharding.verify import Finding, verify
from tests.helpers.corpora import Segment, write_corpus
from tests.helpers.images import head, save

TRIALS = 1000


def sealed(folder: Path) -> Path:
    """A corpus of a few samples with few voxels, finished as a build finishes one."""
    write_corpus(folder, [Segment(7, dataset=name) for name in ("a", "a", "b")], samples_per_shard=2)
    facts = json.loads((folder / "corpus.json").read_text())
    index = pq.read_table(folder / "index.parquet")
    facts["corpus_id"] = corpus_id(index, facts["mask"]["sha256"])
    tables = {"runs.parquet": table_bytes(RUNS_SCHEMA.empty_table()), "index.parquet": table_bytes(index)}
    write_sealed(folder, {"mask.nii.gz": (folder / "mask.nii.gz").read_bytes(), **tables}, facts)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sealed(tmp_path / "corpus")


def files_of(folder: Path) -> list[Path]:
    return [folder / "corpus.json", *(folder / name for name in CHECKED_FILES), *sorted((folder / "shards").iterdir())]


def hit_member(corpus: Corpus, shard: str, byte: int) -> tuple[str, str] | None:
    """Key and suffix of the member whose header, payload or padding holds a byte of a shard."""
    index = corpus.index
    for row in np.flatnonzero(index["shard"] == shard):
        for suffix, stem in MEMBER_COLUMNS.items():
            start, size = int(index[f"{stem}_offset"][row]), int(index[f"{stem}_bytes"][row])
            if start - 512 <= byte < start + size + -size % 512:
                return str(index["key"][row]), suffix
    return None


def test_whole_corpus_has_no_findings(folder: Path) -> None:
    report = verify(folder, deep=True)
    assert report.findings == []
    assert report.files == len(files_of(folder))
    assert report.bytes_read == sum(file.stat().st_size for file in files_of(folder))


def test_every_changed_byte_is_found_and_named(folder: Path) -> None:
    corpus, rng = open_corpus(folder), np.random.default_rng(1)
    files = files_of(folder)
    whole = {file: file.read_bytes() for file in files}
    kinds: Counter[str] = Counter()
    for trial in range(TRIALS):
        file = files[trial % len(files)]
        data = bytearray(whole[file])
        byte = int(rng.integers(len(data)))
        data[byte] ^= int(rng.integers(1, 256))
        file.write_bytes(data)
        findings = verify(folder, deep=True).findings
        name = str(file.relative_to(folder))
        assert name in {finding.file for finding in findings}, (name, byte)
        if file.parent.name == "shards":
            member = hit_member(corpus, file.name, byte)
            assert [(f.file, f.kind) for f in findings] == [(name, "altered")], (byte, findings)
            assert (findings[0].key, findings[0].member) == (member or ("", "")), (byte, findings)
            kinds[findings[0].said.split(" ")[0]] += 1
        file.write_bytes(whole[file])
    assert verify(folder, deep=True).findings == []
    assert set(kinds) >= {"header", "padding", "end"}, kinds
    assert sum(kinds.values()) - kinds["header"] - kinds["padding"] - kinds["end"] > 0, kinds


def test_every_truncation_is_found_and_names_what_is_gone(folder: Path) -> None:
    corpus, rng = open_corpus(folder), np.random.default_rng(2)
    for file in files_of(folder):
        whole, name = file.read_bytes(), str(file.relative_to(folder))
        for length in {0, len(whole) - 1, *rng.integers(0, len(whole), 40).tolist()}:
            file.write_bytes(whole[:length])
            quick, deep = verify(folder).findings, verify(folder, deep=True).findings
            assert name in {finding.file for finding in quick}, length
            if file.parent.name == "shards":
                gone = {(f.key, f.member) for f in deep if f.key}
                index = corpus.index
                ends = {
                    (str(index["key"][row]), suffix): int(index[f"{stem}_offset"][row] + index[f"{stem}_bytes"][row])
                    for row in np.flatnonzero(index["shard"] == file.name)
                    for suffix, stem in MEMBER_COLUMNS.items()
                }
                assert gone == {member for member, end in ends.items() if end > length} or not length
                assert length or Finding(name, "short", f"0 bytes, not {len(whole):,}") in deep
        file.write_bytes(whole)


def test_altered_frames_are_named(folder: Path) -> None:
    index = open_corpus(folder).index
    shard = folder / "shards" / index["shard"][0]
    data, voxels = bytearray(shard.read_bytes()), 60
    for frame in (2, 5):
        data[index["bold_offset"][0] + 128 + frame * voxels + 3] ^= 1
    shard.write_bytes(data)
    (finding,) = verify(folder, deep=True).findings
    assert finding.said == f"{index['key'][0]}.bold.npy, frames 2, 5"


def test_missing_and_foreign_files_are_found_without_reading_shards(folder: Path, capsys) -> None:
    names = sorted(file.name for file in (folder / "shards").iterdir())
    (folder / "shards" / names[0]).unlink()
    (folder / "shards" / "stray-000000.tar").write_bytes(b"")
    (folder / "runs.parquet").unlink()
    assert main(["verify", str(folder), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    found = {(finding["file"], finding["kind"]) for finding in said["findings"]}
    assert found == {
        ("runs.parquet", "missing"),
        (f"shards/{names[0]}", "missing"),
        ("shards/stray-000000.tar", "unknown"),
    }


def test_exit_code_says_whether_anything_was_found(folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["verify", str(folder), "--deep"]) == 0
    assert "nothing wrong" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    (folder / "corpus.json").unlink()
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.startswith("corpus.json: missing")


def test_index_comes_back_from_the_tars_to_the_byte(folder: Path) -> None:
    index = folder / "index.parquet"
    before = index.read_bytes()
    index.unlink()
    assert main(["index", str(folder)]) == 0
    assert index.read_bytes() == before
    index.unlink()
    meta = (folder / "corpus.json").read_bytes()
    (folder / "corpus.json").unlink()
    assert main(["index", str(folder)]) == 0
    assert index.read_bytes() == before
    (folder / "corpus.json").write_bytes(meta)
    assert verify(folder, deep=True).findings == []


def test_index_of_shards_that_were_changed_is_not_written(folder: Path, capsys) -> None:
    index, shard = folder / "index.parquet", next(iter(sorted((folder / "shards").iterdir())))
    before, row = index.read_bytes(), open_corpus(folder).index
    data = bytearray(shard.read_bytes())
    data[int(row["scale_offset"][0]) + 200] ^= 1
    shard.write_bytes(data)
    assert main(["index", str(folder)]) == 1
    assert "not those of corpus.json; nothing written" in capsys.readouterr().err
    assert index.read_bytes() == before
    shard.write_bytes(data[:-4096])
    assert main(["index", str(folder)]) == 2
    assert str(shard) in capsys.readouterr().err


def test_index_of_another_pyarrow_is_recorded(folder: Path) -> None:
    table = pq.read_table(folder / "index.parquet")
    facts = json.loads((folder / "corpus.json").read_text())
    other = pa.BufferOutputStream()
    pq.write_table(table, other, compression="gzip")
    files = {name: (folder / name).read_bytes() for name in CHECKED_FILES[:2]}
    del facts["files"], facts["sealed"]
    write_sealed(folder, {**files, "index.parquet": other.getvalue().to_pybytes()}, facts)
    assert main(["index", str(folder)]) == 0
    assert verify(folder, deep=True).findings == []
    assert is_sealed((folder / "corpus.json").read_bytes())
    assert (
        hashlib.sha256((folder / "index.parquet").read_bytes()).hexdigest()
        != hashlib.sha256(other.getvalue().to_pybytes()).hexdigest()
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of one run of 140 frames, beside its source."""
    folder = tmp_path_factory.mktemp("built")
    path = save(head(voxel_mm=12, volumes=140, tr=1.5), folder)
    runs, left_out = find_runs([path], dataset="d")
    settings = BuildSettings(preprocessing=PreprocessingSettings(target_tr=None))
    build_corpus(runs, left_out, folder / "corpus", settings)
    return folder


def test_built_corpus_is_verified_and_indexed_anew(built: Path) -> None:
    assert verify(built / "corpus", deep=True).findings == []
    before = (built / "corpus" / "index.parquet").read_bytes()
    assert main(["index", str(built / "corpus")]) == 0
    assert (built / "corpus" / "index.parquet").read_bytes() == before


def test_stored_segment_comes_back_as_an_image(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.nii.gz"
    assert main(["decode", str(built / "corpus"), "d__sub-01_task-rest__000128", "--out", str(out)]) == 0
    image = nib.load(out)
    np.testing.assert_array_equal(image.affine, GRID_AFFINE)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(image.header.get_zooms(), [2, 2, 2, 1.5])
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
    corpus = open_corpus(built / "corpus")
    values = np.asarray(image.dataobj)
    run = prepare_run(built / "sub-01_task-rest_bold.nii.gz", PreprocessingSettings(target_tr=None))
    step = run.unit * run.scale[1].astype(np.float32)
    assert values.shape[3] == 12
    assert (np.abs(values[corpus.mask].T - run.frames(128, 140)) <= 0.501 * step + 1e-3).all()
    assert not values[~corpus.mask].any()


def test_whole_run_comes_back_in_the_order_of_time(built: Path, tmp_path: Path) -> None:
    out, corpus = tmp_path / "x.nii", built / "corpus"
    assert main(["decode", str(corpus), "d__sub-01_task-rest", "--out", str(out)]) == 0
    assert nib.load(out).shape == (96, 96, 96, 140)
    assert main(["decode", str(corpus), "d__sub-01_task-rest__000128", "--out", str(tmp_path / "end.nii")]) == 0
    end = np.asarray(nib.load(tmp_path / "end.nii").dataobj)
    np.testing.assert_array_equal(np.asarray(nib.load(out).dataobj[..., 128:]), end)


def test_damaged_sample_is_not_decoded(folder: Path, tmp_path: Path, capsys) -> None:
    index = open_corpus(folder).index
    shard = folder / "shards" / index["shard"][0]
    data = bytearray(shard.read_bytes())
    data[int(index["bold_offset"][0]) + 300] ^= 1
    shard.write_bytes(data)
    key, out = str(index["key"][0]), tmp_path / "x.nii"
    assert main(["decode", str(folder), key, "--out", str(out)]) == 2
    assert f"{key}.bold.npy is damaged" in capsys.readouterr().err
    assert main(["decode", str(folder), "nobody", "--out", str(out)]) == 2
    assert f"no sample or run 'nobody'; keys are such as {key!r}" in capsys.readouterr().err
    assert list(tmp_path.glob("*.nii*")) == []
