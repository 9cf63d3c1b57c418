"""benchmarks/scaling.py: bytes by ZeRO's formulas, predictions that no hardware could beat, measured points kept."""

from argparse import Namespace
from itertools import pairwise

import pytest

from benchmarks import scaling
from fmri_scale.config import load_config
from fmri_scale.models import cost
from fmri_scale.training.estimate.devices import GPUS

BASE = scaling.ROOT / "configs/model/base.yaml"


def config(stage):
    return load_config([BASE], [f"engine.zero_stage={stage}", "engine.dtype=bf16"])


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_volume_is_that_of_the_paper(stage, times):
    """ZeRO, section 7: 2 psi elements with stages 0 to 2, 3 psi with stage 3; over a ring of n, (n-1)/n of that."""
    psi = cost(config(stage).model).total.parameters
    for ranks in (2, 8, 1024):
        sent = scaling.at(config(stage), GPUS["h200"], ranks, 8, 8 * ranks, 8).sent
        assert sent == pytest.approx(times * psi * 4 * (ranks - 1) / ranks)
    assert scaling.at(config(stage), GPUS["h200"], 1, 8, 8, 8).sent == 0


def test_accumulation_is_free_for_stages_0_and_1_alone():
    once, four = ([scaling.at(config(s), GPUS["h200"], 8, 8, 64 * n, 8).sent for s in range(4)] for n in (1, 4))
    ratios = [b / a for a, b in zip(once, four, strict=True)]
    assert ratios == pytest.approx([1, 1, 2.5, 4])  # stage 2: 4 reductions and a gather for 1 and 1; stage 3: all anew


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_prediction_is_monotone_and_below_ideal(stage, gpu):
    args = Namespace(preset="base", zero=stage, batch=8, accumulation=1, strong_batch=1024, gpu=gpu, ranks_per_node=8)
    record = scaling.predict(args)
    for series in record["series"]:
        rows = series["rows"]
        assert [row["ranks"] for row in rows] == [2**k for k in range(11)]
        assert all(0 < row["efficiency"] <= 1 and row["rate"] <= row["ideal"] for row in rows)
        assert rows[0]["efficiency"] == 1
        assert all(a["efficiency"] >= b["efficiency"] for a, b in pairwise(rows))
        assert all(row["measured_step_s"] is None and row["measured_rate"] is None for row in rows)
    weak, _ = (series["rows"] for series in record["series"])
    assert all(a["rate"] < b["rate"] for a, b in pairwise(weak))
    assert "PREDICTION" in record["label"]


def test_another_machine_is_reached_over_the_network():
    inside, outside = (scaling.at(config(1), GPUS["h200"], 16, 8, 128, n) for n in (16, 8))
    assert inside.sent == outside.sent
    ratio = GPUS["h200"].node_link / GPUS["h200"].network_link
    transfer = inside.sent / GPUS["h200"].node_link
    assert outside.link_s - inside.link_s == pytest.approx(transfer * (ratio - 1))


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="no multiple of 3 ranks"):
        scaling.at(config(1), GPUS["h200"], 3, 8, 64, 8)


def results(ranks, step_s, global_batch):
    """A result file of throughput.py with one point."""
    row = {"preset": "tiny", "batch": 1, "zero_stage": 1, "checkpointing": False, "compile": "off", "backend": "auto"}
    row |= {"loader": "synthetic", "ranks": ranks, "global_batch": global_batch, "failed": ""}
    row["step_s"] = {"median": step_s, "low": step_s, "high": step_s}
    failed = {**row, "failed": "exit code 1: out of memory"}
    record = {"machine": "M", "gpu": None, "date": "2026-01-01", "load_before": 0.0, "ranks_per_node": ranks, "set": []}
    return {**record, "rows": [failed, row]}


def test_measured_points_stand_beside_their_prediction():
    record = scaling.compare([results(2, 0.6, 2), results(1, 0.5, 1)])
    (weak,) = record["series"]
    one, two = weak["rows"]
    assert weak["kind"] == "weak"
    assert one["step_s"] == one["measured_step_s"] == 0.5
    assert (one["measured_rate"], two["measured_rate"]) == (16 / 0.5, pytest.approx(32 / 0.6))
    assert two["step_s"] == pytest.approx(0.5 + two["exposed_s"])
    assert two["measured_step_s"] == 0.6
    (strong,) = scaling.compare([results(1, 2.0, 4), results(2, 1.1, 4)])["series"]
    assert strong["kind"] == "strong"
    assert strong["rows"][1]["step_s"] == pytest.approx(1.0 + strong["rows"][1]["exposed_s"])


def test_results_that_are_no_series_are_refused():
    with pytest.raises(SystemExit, match="several numbers of ranks"):
        scaling.compare([results(1, 0.5, 1)])
