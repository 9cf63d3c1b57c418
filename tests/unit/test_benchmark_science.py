"""What an experiment found is held against what is claimed, and a claim that does not hold is written down as one."""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
METHODS = ("token (linear)", "untrained (linear)", "connectivity (correlation)", "majority")


@pytest.fixture
def science(monkeypatch: pytest.MonkeyPatch):
    """The script, with nothing run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("science", FOLDER / "science.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.subprocess, "run", lambda *arguments, **options: None)
    yield module
    sys.modules.pop("loader_scale", None)


def found(folder: Path, areas: dict[str, tuple[float, float, float]], null: tuple[float, float], last: int) -> None:
    """Results as an experiment leaves them: areas under the curve, and planted regions of which one has rank `last`."""
    out = folder / "known_truth"
    (out / "attribution" / "planted").mkdir(parents=True)
    (out / "data" / "planted" / "images").mkdir(parents=True)
    facts = {"metric": "auroc", "seed_sd": 0.0, "units": 160, "groups": 160, "seeds": 3}
    rows = [{"task": "planted", "method": m, "value": v, "low": a, "high": b} for m, (v, a, b) in areas.items()]
    rows += [{"task": "nothing", "method": m, "value": sum(null) / 2, "low": null[0], "high": null[1]} for m in METHODS]
    pd.DataFrame([row | facts for row in rows]).to_csv(out / "results.csv", index=False)
    names = [f"r{i}" for i in range(40)]
    table = pd.DataFrame({"region": names, "rank": range(1, 41), "z": 40.0, "p_fwe": 0.01})
    table.to_csv(out / "attribution" / "planted" / "regions.csv", index=False)
    planted = ["r0", "r1", "r2", names[last - 1]]
    (out / "data" / "planted" / "images" / "truth.json").write_text(json.dumps({"planted": planted}))


APART = {"token (linear)": (0.8, 0.75, 0.85), "untrained (linear)": (0.6, 0.5, 0.7),
         "connectivity (correlation)": (0.99, 0.98, 1.0), "majority": (0.5, 0.5, 0.5)}  # fmt: skip


@pytest.mark.parametrize(
    ("areas", "null", "last", "wrong"),
    [
        (APART, (0.4, 0.6), 4, None),
        (APART | {"untrained (linear)": (0.7, 0.6, 0.76)}, (0.4, 0.6), 4, "beats the untrained"),
        (APART, (0.51, 0.6), 4, "holds chance"),
        (APART, (0.4, 0.6), 5, "planted regions"),
    ],
)
def test_a_claim_that_does_not_hold_is_written_down(science, tmp_path: Path, monkeypatch, areas, null, last, wrong):
    found(tmp_path, areas, null, last)
    monkeypatch.setattr(sys, "argv", ["science.py", "known_truth", str(tmp_path), "--out", str(tmp_path)])
    assert science.main() == (0 if wrong is None else 1)
    (page,) = tmp_path.glob("science_known_truth_*.md")
    failed = [line for line in page.read_text().splitlines() if "**does not hold**" in line]
    assert len(failed) == (wrong is not None)
    assert wrong is None or wrong in failed[0]
    assert "| planted | token (linear) | 0.800 (0.750 to 0.850) |" in page.read_text()
    assert "| r0 (planted) | 1 |" in page.read_text()


def test_files_that_differ_after_a_kill_are_named(science, tmp_path: Path, monkeypatch):
    for name in ("small_whole", "small_killed"):
        for file in (*science.SAME, *science.KILL_AT):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(f"of {name}")
    assert science.killed(tmp_path, [])["claims"][0]["holds"]
    (tmp_path / "small_killed" / "results.csv").write_text("other")
    (claim,) = science.killed(tmp_path, [])["claims"]
    assert not claim["holds"]
    assert "differ: ['results.csv']" in claim["figures"]
