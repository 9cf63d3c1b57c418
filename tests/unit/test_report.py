"""The page about a run: made from the folder alone, every number as it stands there, no empty plot, nothing loaded."""

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from fmri_scale.cli import main
from fmri_scale.config import load_config, save_config
from fmri_scale.errors import DataError
from fmri_scale.training.folder import Status
from fmri_scale.training.metrics import MetricsFile
from fmri_scale.training.report import figures, gather, write_report

MESSAGE = "<b>corpus</b> & 'more' was \"not\" found"


def row(step, **more):
    values = {"loss": 2.0 / step, "lr": 1e-4, "grad_norm": 1.5, "frames_per_s": 100.0 + step, "mfu": None}
    return {"step": step, "clips": 4 * step, "clip_hash": "00ff", **values, **more}


@pytest.fixture
def run_dir(tmp_path):
    """The folder of a run that had its troubles, made by what a training writes with."""
    folder = tmp_path / "my run"
    (folder / "logs").mkdir(parents=True)
    save_config(load_config([], ["optim.lr=0.25", f"run_dir={folder}", "log.wandb=off"]), folder / "config.yaml")
    metrics = MetricsFile(folder, 0)
    for step in range(1, 13):
        metrics.write(
            row(
                step,
                time_read_s=0.01 * step,
                novel=1.0 * step,
                slowest_rank=1,
                **({"val_loss": 1.0} if step == 12 else {}),
            )
        )
    metrics.write(row(13, loss=math.nan))
    metrics.close()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "lo')
    Status(folder, True, 20).write("failed", 13, exit_code=2, message=MESSAGE)
    (folder / "bad_steps.jsonl").write_text(
        json.dumps({"step": 5, "grad_norm": "inf", "ranks": [{"clips": ["k@3"]}]}) + "\n"
    )
    bad = {"rank": 1, "position": 7, "shard": "a-000000.tar", "key": "sub-9", "start_frame": 3, "reason": "checksum"}
    (folder / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
    launch = {"launch": "x", "host": "node7", "started": "2026-01-01T00:00:00+0000", "exit_code": 137, "command": "c"}
    (folder / "launches.jsonl").write_text(json.dumps(launch) + "\n")
    log = "10:00:00 [3] INFO nothing\n10:00:01 [3] WARNING step 5 skipped\nTraceback\n10:00:02 [3] ERROR gone\n"
    (folder / "logs" / "rank_3.log").write_text(log)
    return folder


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_data(self, data):
        self.text += data


def numbers_in(text):
    found = re.search(r'<script type="application/json" id="metrics">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_every_number_is_that_of_the_folder(run_dir):
    text = write_report(run_dir).read_text()
    whole = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()[:-1]]
    assert numbers_in(text) == whole
    page = Page(text)
    for key, value in whole[-1].items():
        assert f"{key}{'–' if value is None else value}" in page.text.replace("\n", "")


def test_faults_starts_and_changed_settings_are_told(run_dir):
    page = Page(write_report(run_dir).read_text())
    for said in (
        "failed",
        MESSAGE,
        "sub-9",
        "checksum",
        "k@3",
        "node7",
        "137",
        "step 5 skipped",
        "gone",
        "optim.lr",
        "0.25",
    ):
        assert said in page.text, said
    assert "nothing" not in page.text.split("Warnings and errors")[1].split("Configuration")[0]
    assert "metrics.jsonl1" in page.text.replace("\n", "")  # one line cut short


def test_page_holds_everything_and_loads_nothing(run_dir):
    text = write_report(run_dir).read_text()
    page = Page(text)
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert not re.search(r"@import|url\((?!#)", text)
    assert html.escape(MESSAGE) in text
    assert "<b>corpus" not in text
    # the only script element holds numbers and is not run
    assert page.tags.count("script") == 1


def test_no_plot_is_empty(run_dir):
    rows = gather.gather(run_dir).rows
    drawn = dict(figures.draw_all(rows))
    assert "Loss" in drawn
    assert "Phases of a step" in drawn
    assert "novel" in drawn  # a number that no panel knows
    assert "slowest_rank" not in drawn  # which one, not how much
    assert "MFU" not in drawn  # never a finite value
    assert "clip_hash" not in drawn
    for title, svg in drawn.items():
        curves = re.findall(r'<g id="line2d_\d+">\s*<path d="(M [^"]*)"[^>]*clip-path', svg)
        assert curves, title
    assert figures.finite_points(rows, "loss")[-1] == (12, 2.0 / 12)  # the NaN of step 13 is not drawn


def test_run_that_has_logged_nothing_has_a_page_without_plots(tmp_path):
    Status(tmp_path, True, 20).write("starting", 0)
    page = Page(write_report(tmp_path).read_text())
    assert "svg" not in page.tags
    assert "No step has been logged yet" in page.text


def test_spike_stays_visible_in_a_long_run():
    points = [(step, 1.0) for step in range(1, 50001)]
    points[33333] = (33334, 99.0)
    shown = figures.thinned(points)
    assert len(shown) <= figures.MOST_POINTS
    assert shown[:, 3].max() == 99.0
    assert np.median(shown[:, 1]) == 1.0


def test_same_run_gives_the_same_page(run_dir, tmp_path):
    pages = [write_report(run_dir, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_command_names_what_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "not a run's folder" in capsys.readouterr().err
    Status(tmp_path, True, 20).write("running", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="name another file with --out"):
        write_report(tmp_path, tmp_path / "file" / "page.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt-get install chromium")
def test_browser_shows_the_page(run_dir, tmp_path):
    page = write_report(run_dir, tmp_path / "page.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    shown = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert Page(shown).tags.count("svg") == len(dict(figures.draw_all(gather.gather(run_dir).rows)))
    assert html.escape(MESSAGE, quote=False) in shown
