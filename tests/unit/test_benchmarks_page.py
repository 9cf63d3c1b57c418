"""benchmarks/README.md holds what the results files say, losses included, and points at files that exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PAGE = (FOLDER / "README.md").read_text()


def test_page_is_the_one_that_the_results_give():
    check = subprocess.run([sys.executable, FOLDER / "peers.py", "--check"], timeout=60)
    assert check.returncode == 0, "results have changed since: python benchmarks/peers.py"


def test_losses_are_told():
    loader = next(FOLDER.glob("results/loader_[!s]*.json"))
    first = {r["system"]: r["first_batch_s"] for r in json.loads(loader.read_text())["rows"] if r["workers"] == 1}
    quicker = [name for name in ("webdataset", "mosaicml-streaming", "litdata") if first[name] < first["ours"]]
    for name in quicker:
        assert re.search(rf"wait for the first batch, s \|[^|]*\| {name}: [^|]*\| [^|]*\(loses\)", PAGE), name


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE))))
def test_link_resolves(target):
    assert (FOLDER / target).exists()


@pytest.mark.parametrize("script", sorted(set(re.findall(r"benchmarks/(\w+\.py)", PAGE))))
def test_script_exists(script):
    assert (FOLDER / script).exists()
