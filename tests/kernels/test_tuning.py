"""Launch tables: complete, usable at every width, replaced by a relative's with a warning, written by a tool."""

import itertools
import json
import logging

import pytest
import torch

from fmri_scale.kernels import tuning
from fmri_scale.kernels.cases import STAGES

CPU = torch.device("cpu")
TABLES = sorted(path.stem for path in tuning.TABLES.glob("*.json"))


@pytest.fixture(autouse=True)
def _fresh():
    tuning._read.cache_clear()
    yield
    tuning._read.cache_clear()


def test_there_is_a_table_for_each_architecture_that_is_supported():
    assert {"sm_80", "sm_90", "sm_100"} <= set(TABLES)


@pytest.mark.parametrize("arch", TABLES)
def test_table_answers_for_every_width_and_batch(arch, monkeypatch):
    monkeypatch.setattr(tuning, "_pretended", [arch])
    for width, batch, stage in itertools.product((8, 72, 100, 144, 192, 576, 640), (1, 8, 4096), STAGES):
        windows = batch * stage.windows.num_windows
        for kernel in ("scan_forward", "scan_backward"):
            tile = tuning.scan_tile(kernel, CPU, width, windows, stage.windows.window[3])
            assert tile.programs * (tile.main + tile.tail) >= width
            assert stage.windows.window[3] % tile.unroll == 0
        for kernel in ("conv_forward", "conv_backward"):
            tile = tuning.conv_tile(kernel, CPU, width, stage.windows.length)
            assert tile.programs * (tile.main + tile.tail) >= width
            assert tile.run * tile.runs >= stage.windows.length


@pytest.mark.parametrize("arch", TABLES)
def test_rules_go_from_much_work_to_any(arch):
    table = tuning.table(arch)
    assert table["basis"]
    assert table["mlp_weight"]["tokens"] >= 16
    assert table["mlp_weight"]["hidden"] >= 16
    for kernel in ("scan_forward", "scan_backward"):
        least = [rule["channel_windows_at_least"] for rule in table[kernel]]
        assert least == sorted(least, reverse=True)
        assert least[-1] == 0


@pytest.mark.parametrize(
    ("arch", "relative"),
    [("sm_89", "sm_80"), ("sm_103", "sm_100"), ("sm_120", "sm_100"), ("sm_75", "sm_80"), ("gfx942", "sm_90")],
)
def test_unknown_architecture_takes_a_relative_and_says_so_once(arch, relative, caplog):
    with caplog.at_level(logging.WARNING, logger="fmri_scale"):
        assert tuning.table(arch) == tuning.table(relative)
        tuning.table(arch)
    (message,) = [record.message for record in caplog.records]
    assert f"no launch table for {arch}, using that of {relative}" in message
    assert f"tune --arch {arch} --measure" in message


def test_override_ends_with_its_block():
    rule = {"channels": 8, "unroll": 1, "num_warps": 1, "channel_windows_at_least": 0}
    with tuning.override({"scan_forward": [rule]}):
        assert tuning.scan_tile("scan_forward", CPU, 72, 10**9, 4).programs == 9
        assert tuning.scan_tile("scan_backward", CPU, 72, 10**9, 4).programs == 1
    assert tuning.scan_tile("scan_forward", CPU, 72, 10**9, 4).programs == 1


def test_tool_writes_a_table_that_is_read(tmp_path, monkeypatch, capsys):
    from fmri_scale.kernels import tune

    monkeypatch.setattr(tune, "SCAN_CANDIDATES", [(72, 1), (8, 1)])
    monkeypatch.setattr(tune, "CONV_CANDIDATES", [(16, 4)])
    monkeypatch.setattr(tune, "MLP_CANDIDATES", [(32, 32)])
    monkeypatch.setattr(tune, "WORK", (360, 72 * 10**6))
    assert tune.main(["--arch", "sm_90", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "sm_90.json").read_text())
    assert table["basis"] == "static"
    assert [rule["channels"] for rule in table["scan_forward"]] == [72, 8]  # few programs are cut finer
    tuning._read.cache_clear()
    monkeypatch.setattr(tuning, "TABLES", tmp_path)
    assert tuning.table("sm_90") == table
    assert "static" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--arch", "sm_75"], "need --measure"), (["--arch", "sm_90", "--measure"], "the GPU is")]
)
def test_tool_refuses_what_it_cannot_do(arguments, words, capsys, monkeypatch):
    from fmri_scale.kernels import tune

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert words in capsys.readouterr().err
