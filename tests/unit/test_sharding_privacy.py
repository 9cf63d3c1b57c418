"""A corpus under pseudonyms: no byte of it names a person, a session, a family or a file; the key stays outside."""

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sharding.cli import main
from sharding.corpus import open_corpus
from sharding.errors import InputError
from sharding.privacy import Pseudonyms, without_names
from tests.helpers.images import head, save, with_header
from tests.helpers.trees import MNI6, bids_tree, fmriprep_run, hcp_run, put

PEOPLE = ("KOWALSKI77", "NDIAYE88", "OBRIEN99")
SECRETS = [*PEOPLE, "visit20190412", "scan5551", "acq-ward3", "FAMILYSMITH", "hospitalarchive"]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "key.bin"
    file.write_bytes(bytes(range(32)))
    return file


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good runs, one that fails by its header, one by its data, one left out, one sidecar that is broken."""
    root = bids_tree(tmp_path_factory.mktemp("hospitalarchive") / "study")
    for person in PEOPLE[:2]:
        fmriprep_run(root, f"sub-{person}_ses-visit20190412_task-rest_acq-ward3_run-scan5551", (MNI6, "space-T1w"))
    folder = fmriprep_run(root, f"sub-{PEOPLE[2]}_ses-visit20190412_task-rest_run-scan5551", (MNI6,))
    truncated = next(folder.glob("*_bold.nii.gz"))
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    save(with_header(head(voxel_mm=10.0, volumes=3), 1.0), folder, truncated.name.replace("rest", "short"))
    folder = fmriprep_run(root, f"sub-{PEOPLE[2]}_ses-visit20190412_task-odd_run-scan5551", (MNI6,))
    next(folder.glob("*task-odd*_bold.json")).write_text("{")
    return root


def build(source: Path, out: Path, *options: str | Path) -> int:
    return main(["build", str(source), "--out", str(out), "--dataset", "study", "--workers", "0", *map(str, options)])


@pytest.fixture(scope="module")
def corpus(tree: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "corpus"
    assert build(tree, out, "--anonymise", key) == 1  # some failed
    return out


def everything(corpus: Path) -> str:
    """Every byte of a corpus as text, and its tables also decompressed."""
    texts = []
    for where, _, files in os.walk(corpus):
        for name in files:
            path = Path(where, name)
            texts += [str(path.relative_to(corpus)), path.read_bytes().decode("latin-1")]
            if path.suffix == ".parquet":
                texts.append(json.dumps(pq.read_table(path).to_pylist()))
                texts.append(str(pq.read_schema(path).metadata))
    return "\n".join(texts)


def test_no_byte_of_the_output_names_a_person_or_a_file(corpus: Path, tree: Path, key: Path) -> None:
    text = everything(corpus)
    for secret in [*SECRETS, str(tree), "desc-preproc", ".nii.gz:", key.read_bytes().decode("latin-1")]:
        assert secret not in text, secret
    assert "study__sub-" in text


def test_without_the_option_the_same_search_finds_every_name(tree: Path, tmp_path: Path) -> None:
    """The test above can fail: what it looks for stands in a plain corpus."""
    build(tree, tmp_path / "out")
    text = everything(tmp_path / "out")
    assert all(secret in text for secret in SECRETS if secret != "FAMILYSMITH")
    assert str(tree) in text


def test_reasons_are_kept_without_names(corpus: Path) -> None:
    runs = pq.read_table(corpus / "runs.parquet").to_pylist()
    failed = [run["reason"] for run in runs if run["status"] == "failed"]
    assert len(failed) == 3
    assert any("gzip stream is truncated" in reason for reason in failed)
    assert any("too short: 3 volumes of 1 s" in reason for reason in failed)
    assert any("sidecar cannot be read" in reason for reason in failed)
    assert {run["source_mtime_ns"] for run in runs} == {None}
    assert all(run["source"].startswith("file-") for run in runs)


def test_said_reasons_name_no_person(tree: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tree, tmp_path / "out", "--anonymise", key)
    said = capsys.readouterr().err
    assert "failed: " in said
    assert not any(secret in said for secret in SECRETS)


def test_same_key_gives_the_same_names_and_another_other_ones(
    corpus: Path, tree: Path, key: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(range(1, 33)))
    build(tree, tmp_path / "again", "--anonymise", key)
    build(tree, tmp_path / "other", "--anonymise", other)
    one, again, changed = (open_corpus(path) for path in (corpus, tmp_path / "again", tmp_path / "other"))
    assert one.corpus_id == again.corpus_id
    assert not set(one.index["subject"]) & set(changed.index["subject"])
    assert len(set(one.index["subject"])) == 2


def test_map_translates_names_outside_the_corpus(corpus: Path, tree: Path, key: Path, tmp_path: Path) -> None:
    table = tmp_path / "who.tsv"
    build(tree, tmp_path / "out", "--anonymise", key, "--anonymise-map", table)
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    who = {row[rows[0].index("subject")]: row[rows[0].index("anonymous_subject")] for row in rows[1:]}
    assert set(PEOPLE[:2]) <= set(who)
    assert {who[person] for person in PEOPLE[:2]} == set(open_corpus(corpus).index["subject"])
    assert stat.S_IMODE(table.stat().st_mode) == 0o600


def test_family_and_whole_table_stand_under_pseudonyms(key: Path, tmp_path: Path) -> None:
    for number, person in enumerate(PEOPLE[:2]):
        save(head(volumes=24, seed=number), tmp_path / "in", f"{person}.nii.gz")
    rows = [f"in/{person}.nii.gz,{person},FAMILYSMITH" for person in PEOPLE[:2]]
    put(tmp_path, "runs.csv", "path,subject,family\n" + "\n".join(rows) + "\n")
    assert build(tmp_path / "runs.csv", tmp_path / "out", "--anonymise", key) == 0
    text = everything(tmp_path / "out")
    assert not any(secret in text for secret in SECRETS)
    index = open_corpus(tmp_path / "out").index
    assert len(set(index["family"])) == 1
    assert len(index["family"][0]) == 16
    assert len(set(index["split"])) == 1


def test_adding_needs_the_same_key(key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, person in enumerate(PEOPLE[:2]):
        save(head(volumes=24, seed=number), tmp_path / person, f"sub-{person}_task-rest_bold.nii.gz")
    assert build(tmp_path / PEOPLE[0], tmp_path / "out", "--anonymise", key) == 0
    (tmp_path / "other.bin").write_bytes(b"x" * 20)
    add = ["append", str(tmp_path / "out"), str(tmp_path / PEOPLE[1]), "--dataset", "study", "--workers", "0"]
    for options, reason in (([], "none given"), (["--anonymise", str(tmp_path / "other.bin")], "another key given")):
        assert main([*add, *options]) == 2
        assert reason in capsys.readouterr().err
    assert main([*add, "--anonymise", str(key)]) == 0
    assert len(open_corpus(tmp_path / "out")) == 2
    assert not any(person in everything(tmp_path / "out") for person in PEOPLE)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "key cannot be read .*head -c 32"), (b"short", "5 bytes, a key has 16 or more")]
)
def test_key_that_is_none_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        Pseudonyms(tmp_path / "key")


def test_key_in_the_corpus_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(head(), tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "key").write_bytes(bytes(32))
    assert build(path, tmp_path / "out", "--anonymise", tmp_path / "out" / "key") == 2
    assert "lies in the corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("/a b/sub-01/x.nii.gz: TR 0 s", "FILE FILE TR 0 s"),
        ("sub-KOWALSKI77 of d would", "sub-*** of d would"),
        ("mask of KOWALSKI77: 3 of 4", "mask of ***: 3 of 4"),
        ("x_bold.json: cannot", "FILE cannot"),
    ],
)
def test_reason_without_names(reason: str, expected: str) -> None:
    assert without_names(reason, ["KOWALSKI77"]) == expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("/data/Jane Mary Smith/sub 1.nii.gz: TR 0 s", "FILE TR 0 s"),
        ("/data/Jane Mary Smith/more/sub 1.json: cannot", "FILE cannot"),
        ("[Errno 13] denied: '/data/Jane Mary Smith/sub 1.nii.gz'", "[Errno 13] denied: FILE"),
        ("sub 1.nii.gz of the same run is taken", "FILE of the same run is taken"),
        ("its name says sub-2, its folder sub-Müller", "its name says sub-***, its folder sub-***"),
        ("its name says sub-Mu\u0308ller, its folder sub-M\udcfcller_x", "its name says sub-***, its folder sub-***_x"),
    ],
)
def test_reason_without_the_blanks_of_a_path(reason: str, expected: str) -> None:
    assert without_names(reason, paths=[Path("/data/Jane Mary Smith/sub 1.nii.gz")]) == expected


def test_quoted_path_is_hidden_as_python_quotes_it() -> None:
    path = Path("/data/Jane's Mary Smith\t/x.nii.gz")
    assert without_names(f"denied: {str(path)!r}", paths=[path]) == "denied: FILE"


def test_folders_of_names_with_blanks_stand_in_no_byte(key: Path, tmp_path: Path) -> None:
    """Each kind of file is refused in a folder whose middle word only a path tells from the words about it."""
    root = tmp_path / "of KOWALSKI77 archive"
    save(head(volumes=24), root, "good.nii.gz")
    save(head(volumes=3), root, "a short NDIAYE88 one.nii.gz")
    save(head(volumes=24, seed=1), root, "masked.nii.gz")
    (root / "my OBRIEN99 mask.nii.gz").write_bytes(b"no image")
    rows = [f"{name},{mask}" for name, mask in (("good.nii.gz", ""), ("a short NDIAYE88 one.nii.gz", ""))]
    put(root, "runs.csv", "path,mask\n" + "\n".join([*rows, "masked.nii.gz,my OBRIEN99 mask.nii.gz"]) + "\n")
    assert build(root / "runs.csv", tmp_path / "out", "--anonymise", key) == 1
    text = everything(tmp_path / "out")
    assert not any(person in text for person in PEOPLE)


def test_hcp_folder_of_no_subject_is_not_named(key: Path, tmp_path: Path) -> None:
    hcp_run(tmp_path / "hcp", "100206", "rfMRI_REST1_LR")
    hcp_run(tmp_path / "hcp", "KOWALSKI", "rfMRI_REST1_LR")
    assert build(tmp_path / "hcp", tmp_path / "out", "--anonymise", key) == 1
    assert "KOWALSKI" not in everything(tmp_path / "out")


def test_table_of_displacement_that_cannot_be_read_is_not_named(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hcp_run(tmp_path / "hcp", "100206", "rfMRI_REST1_LR")
    (folder / "Movement_RelativeRMS.txt").write_text("0.1\n")

    def refuse(file: Path, **options: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(np, "loadtxt", refuse)
    build(tmp_path / "hcp", tmp_path / "out", "--anonymise", key)
    (run,) = (r for r in pq.read_table(tmp_path / "out" / "runs.parquet").to_pylist() if r["status"] == "ok")
    assert run["fd_from"] == "unreadable ([Errno 13] Permission denied: " + run["source"]
    assert str(tmp_path) not in everything(tmp_path / "out")


def test_names_that_are_no_utf8_get_pseudonyms(key: Path, tmp_path: Path) -> None:
    for name in (b"sub-1_ses-M\xfcller_bold.nii.gz", b"M\xfcller_mask.nii.gz"):
        save(head(volumes=24), tmp_path / "in", "x.nii.gz").rename(tmp_path / "in" / os.fsdecode(name))
    table = tmp_path / "who.tsv"
    assert build(tmp_path / "in", tmp_path / "out", "--anonymise", key, "--anonymise-map", table) == 0
    assert "ller" not in everything(tmp_path / "out").replace("filler", "")
    assert r"sub-1_ses-M\xfcller_bold.nii.gz" in table.read_text()
