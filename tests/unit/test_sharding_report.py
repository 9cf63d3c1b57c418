"""A corpus' report: numbers are those of the tables, a mirrored or shifted cohort is named, nothing is loaded."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from sharding.cli import main
from sharding.corpus import Corpus, open_corpus
from sharding.errors import CorpusError
from sharding.format import RUNS_SCHEMA
from sharding.phantom import make_cohort
from sharding.report.brains import look, mean_image
from sharding.report.gather import QUALITY, gather, middle_and_spread, outliers
from sharding.report.page import MOST_NUMBERS, _thinned, findings
from sharding.report.sides import compare_sides, mirrored, reference, shift_of
from tests.helpers.corpora import Segment, write_corpus


class Page(HTMLParser):
    """Tables as lists of rows of text, and every address the page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.open_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.open_cell = tag in ("td", "th")

    def handle_data(self, data):
        if self.open_cell:
            self.tables[-1][-1][-1] += data


def cohort(home: Path, dataset: str, people: int, seed: int, change=lambda values: values) -> list[str]:
    """Rows of a table of phantom runs, whose voxels are changed on disk but not their affine."""
    rows = []
    for file in make_cohort(home / dataset, people, volumes=26, voxel_mm=8.0, seed=seed):
        path = home / f"{dataset}_{file.name}"
        rows.append(f"{path}\t{dataset}\t{len(rows):02d}\trest\t{'train' if len(rows) else 'val'}")
    for row, file in zip(rows, sorted((home / dataset).rglob("*_bold.nii.gz")), strict=True):
        image = nib.load(file)
        values = np.ascontiguousarray(change(np.asarray(image.dataobj)))
        nib.save(nib.Nifti1Image(values, image.affine, image.header), row.split("\t")[0])
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of six good runs, three that were mirrored, one shifted to the front, and one that is no image."""
    home = tmp_path_factory.mktemp("report")
    rows = cohort(home, "good", 6, 1)
    rows += cohort(home, "turned", 3, 2, lambda values: values[::-1])
    rows += cohort(home, "moved", 1, 3, lambda values: np.roll(values, 1, axis=1))
    (home / "bad<1>.nii.gz").write_text("no image")
    rows.append(f"{home / 'bad<1>.nii.gz'}\tgood\t99\trest\ttrain")
    (home / "runs.tsv").write_text("path\tdataset\tsubject\ttask\tsplit\n" + "\n".join(rows) + "\n")
    assert main(["build", str(home / "runs.tsv"), "--out", str(home / "corpus"), "--tr", "0.8"]) == 1
    return home / "corpus"


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    assert main(["report", str(folder), "--out", str(folder.parent / "out" / "page.html")]) == 0
    return (folder.parent / "out" / "page.html").read_text()


def numbers(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page)[1])


def test_counts_are_those_of_the_index(folder: Path, page: str) -> None:
    index = pd.read_parquet(folder / "index.parquet")
    runs = pd.read_parquet(folder / "runs.parquet")
    meta = json.loads((folder / "corpus.json").read_text())
    totals = numbers(page)["totals"]
    assert totals["frames"] == index.n_frames.sum()
    assert totals["subjects"] == len(index[["dataset", "subject"]].drop_duplicates()) == 10
    assert (totals["runs"], totals["failed"]) == ((runs.status == "ok").sum(), (runs.status == "failed").sum())
    assert totals["hours"] == pytest.approx((index.n_frames * index.tr).sum() / 3600)
    assert totals["bytes"] == sum(shard["bytes"] for shard in meta["shards"])
    head, *rows = Page(page).tables[0]
    assert [row[0] for row in rows] == sorted(index.dataset.unique())
    for row in rows:
        shown, mine = dict(zip(head, row, strict=True)), index[index.dataset == row[0]]
        assert int(shown["subjects"]) == mine.subject.nunique()
        assert int(shown["runs"]) == ((runs.dataset == row[0]) & (runs.status == "ok")).sum()
        assert int(shown["frames"].replace(",", "")) == mine.n_frames.sum()
        for split in ("train", "val", "test"):
            part = mine[mine.split == split]
            assert int(shown[f"{split} subjects"]) == part.subject.nunique()
            assert int(shown[f"{split} frames"].replace(",", "")) == part.n_frames.sum()


def test_quality_figures_are_those_of_the_runs(folder: Path, page: str) -> None:
    runs = pd.read_parquet(folder / "runs.parquet")
    ok = runs[runs.status == "ok"]
    shown = numbers(page)["quality"]
    titles = {quality.title: quality.column for quality in QUALITY}
    assert {"tSNR, median over voxels", "share of values clipped by int8"} <= set(shown)
    for title, by_dataset in shown.items():
        column = titles[title]
        values = ok[column] / ok["mean"] if column == "sd" else ok[column]
        for dataset, mine in by_dataset.items():
            assert sorted(mine) == pytest.approx(sorted(values[ok.dataset == dataset].dropna()))


def test_every_quality_figure_of_the_schema_is_on_the_page() -> None:
    known = {quality.column for quality in QUALITY}
    other = {"mean", "background", "source_tr", "header_tr", "tr"}  # facts about a run, of which none is good or bad
    numeric = {f.name for f in RUNS_SCHEMA if str(f.type) == "double"}
    assert numeric - other <= known, "a new quality column of runs.parquet needs a line in sharding/report/gather.py"


def test_what_failed_is_told_and_escaped(page: str) -> None:
    assert "bad&lt;1&gt;.nii.gz" in page
    assert "bad<1>" not in page
    failed = next(table for table in Page(page).tables if table[0][0] == "run that failed")
    assert failed[1][0] == "good sub-99 task-rest"
    assert "not gzip data" in failed[1][1]


def test_mirrored_and_shifted_cohorts_are_named(folder: Path, page: str) -> None:
    brains, sides = look(open_corpus(folder))
    found = findings(gather(open_corpus(folder)), brains, sides)
    assert [line for line in found if "MIRRORED?" in line] == [
        "turned: MIRRORED? left and right lie the other way than in most runs"
    ]
    shifted = [line for line in found if "SHIFTED?" in line]
    assert len(shifted) == 1
    assert re.fullmatch(r"moved: SHIFTED\? \+[78] mm to the front", shifted[0]), "one voxel of 8 mm"
    by_name = {brain.name: brain for brain in brains}
    assert all(run.side > 0.3 for run in by_name["good"].runs)
    assert all(run.side < -0.3 for run in by_name["turned"].runs)
    assert max(abs(mm) for run in by_name["good"].runs for mm in run.shift_mm) < 2.0
    for line in found:
        assert line in Page(page).rawdata or line.replace("<", "&lt;") in page


def test_one_mirrored_run_among_good_ones_is_named() -> None:
    rng = np.random.default_rng(0)
    common = rng.standard_normal(3000)
    runs = common + rng.standard_normal((9, 3000))
    runs[4] *= -1
    sides = compare_sides(runs.astype(np.float32))
    assert np.flatnonzero(sides.scores < -0.15).tolist() == [4]
    assert not sides.undecided
    runs[5:8] *= -1
    assert compare_sides(runs.astype(np.float32)).undecided, "four against five: no camp is the odd one"
    assert compare_sides(runs[:1].astype(np.float32)).scores.tolist() == [0.0]
    noise = compare_sides(rng.standard_normal((6, 3000)).astype(np.float32))
    assert np.abs(noise.scores).max() < 0.15, "runs with nothing in common have no side"


@pytest.mark.parametrize(("axis", "voxels"), [(0, 2), (1, -3), (2, 4)])
def test_a_shift_is_measured_in_mm(axis: int, voxels: int) -> None:
    mask = reference() > 0
    moved = list(shift_of(np.roll(reference(), voxels, axis), mask))
    assert moved.pop(axis) == pytest.approx(2 * voxels, abs=0.3)
    assert max(map(abs, moved)) < 0.5


def test_mirror_turns_about_the_middle() -> None:
    volume = np.zeros((96, 96, 96), dtype=np.float32)
    volume[33, 5, 7] = 1  # x = -30 mm
    assert np.argwhere(mirrored(volume)).tolist() == [[63, 5, 7]]  # x = 30 mm


def test_mean_image_is_the_mean_of_the_decoded_frames(tmp_path: Path) -> None:
    codes: dict[str, np.ndarray] = {}
    corpus = open_corpus(write_corpus(tmp_path / "c", [Segment(9)], num_voxels=300, codes=codes))
    index = corpus.index
    assert len(corpus) == 1
    scale, stats = (_member(corpus, stem) for stem in ("scale", "stats"))
    unit = index["unit"][0]
    mean = scale[0] * unit - stats[0] * stats[1] * unit  # definition in the format: (offset * unit - mean) / sd
    np.testing.assert_allclose(mean_image(corpus, 0)[corpus.mask], mean / mean.mean(), rtol=1e-5)


def _member(corpus: Corpus, stem: str) -> np.ndarray:
    data = corpus.shard_path(corpus.index["shard"][0]).read_bytes()
    start = int(corpus.index[f"{stem}_offset"][0])
    size = int(corpus.index[f"{stem}_bytes"][0])
    return np.frombuffer(data[start + 128 : start + size], dtype=np.float16).reshape(2, -1).astype(np.float64)


def test_mean_image_of_real_content_is_the_mean_of_its_frames(folder: Path) -> None:
    corpus = open_corpus(folder)
    data = corpus.shard_path(corpus.index["shard"][0]).read_bytes()
    start, size = int(corpus.index["bold_offset"][0]), int(corpus.index["bold_bytes"][0])
    codes = np.frombuffer(data[start + 128 : start + size], dtype=np.int8).reshape(-1, corpus.num_voxels)
    scale = _member(corpus, "scale")
    mean = (scale[0] + scale[1] * codes).mean(axis=0)
    ours = mean_image(corpus, 0)[corpus.mask]
    np.testing.assert_allclose(ours / ours.mean(), mean / mean.mean(), rtol=0.01, atol=0.01)


def test_damage_is_named_and_writes_no_page(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c", [Segment(9)])
    corpus = open_corpus(path)
    shard = corpus.shard_path(corpus.index["shard"][0])
    data = bytearray(shard.read_bytes())
    data[int(corpus.index["stats_offset"][0]) + 130] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorpusError, match="stats of phantom__sub-00000__000000 is damaged"):
        look(corpus)


def test_outliers_are_named_against_their_own_dataset() -> None:
    def run(dataset: str, subject: int, tsnr: float) -> dict:
        row = dict.fromkeys(RUNS_SCHEMA.names)
        entities = {"dataset": dataset, "subject": f"{subject:02d}", "status": "ok", "mean": 1.0, "sd": 0.1}
        return row | entities | {"tsnr_median": tsnr}

    runs = [run("a", i, 50 + i % 5) for i in range(10)] + [run("b", i, 100 + i % 5) for i in range(10)]
    assert outliers(runs) == []
    runs[3]["tsnr_median"] = 20.0
    runs[4]["tsnr_median"] = 90.0  # far, but on the good side
    found = outliers(runs)
    assert [(o.run, o.title, o.compared) for o in found] == [("a sub-03", "tSNR, median over voxels", "10 runs of a")]
    values = [r["tsnr_median"] for r in runs[:10]]
    middle, spread = np.median(values), 1.4826 * np.median(np.abs(np.array(values) - np.median(values)))
    assert found[0].z == pytest.approx((20 - middle) / spread)
    runs[12]["tsnr_median"] = None
    assert outliers(runs) == found, "a run without the figure is passed over"


def test_codes_that_keep_a_series_do_not_stand_out_by_keeping_it_a_little_less() -> None:
    rows = [dict.fromkeys(RUNS_SCHEMA.names) | {"dataset": "a", "subject": str(i), "mean": 1.0} for i in range(10)]
    for i, row in enumerate(rows):
        row["int8_corr_p5"] = 0.99995 + 1e-6 * (i % 3)
    rows[4]["int8_corr_p5"] = 0.9990
    assert outliers(rows) == []
    rows[4]["int8_corr_p5"] = 0.98
    assert [outlier.run for outlier in outliers(rows)] == ["a sub-4"]


def test_spread_of_mostly_equal_values_is_not_zero() -> None:
    assert middle_and_spread([0.0] * 9 + [1.0]) == (0.0, pytest.approx(1.2533 * 0.1))
    assert middle_and_spread([2.0] * 9) == (2.0, 0.0)
    assert middle_and_spread([1.0, 9.0]) == (5.0, 0.0)


def test_page_loads_nothing_and_is_reproducible(folder: Path, page: str, tmp_path: Path) -> None:
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in Page(page).addresses)
    assert not re.search(r"@import|url\(|<link|<iframe", page.split("<script")[0].replace("url(#", ""))
    assert main(["report", str(folder), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == page
    assert [file.name for file in tmp_path.iterdir()] == ["again.html"]


def test_page_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", str(folder), "--out", str(tmp_path / "file" / "page.html")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "choose another --out" in message
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(folder), "--runs", "0"]) == 2


def test_numbers_of_a_large_corpus_are_thinned_evenly() -> None:
    values = np.random.default_rng(0).permutation(10_001).astype(float).tolist()
    thin = _thinned(values)
    assert len(thin) == MOST_NUMBERS
    assert set(thin) <= set(values)
    assert (thin[0], thin[-1]) == (0.0, 10_000.0)
    assert np.diff(thin).max() <= 6
    assert _thinned(values[:50]) == values[:50]


def test_page_of_an_anonymised_corpus_names_no_person_and_no_file(folder: Path) -> None:
    home = folder.parent
    (home / "key.txt").write_text("0123456789abcdef0123456789abcdef\n")
    options = ["--out", str(home / "anonymous"), "--tr", "0.8", "--anonymise", str(home / "key.txt")]
    assert main(["build", str(home / "runs.tsv"), *options]) == 1
    assert main(["report", str(home / "anonymous")]) == 0
    page = (home / "anonymous" / "report.html").read_text()
    assert numbers(page)["totals"]["runs"] == 10
    assert len(numbers(page)["failed"]) == 1
    assert str(home) not in page
    assert not re.search(r"sub-0\d\b|sub-99|bad&lt;|_bold", page)
