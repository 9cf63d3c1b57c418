"""The doctor finds what is wrong, says what to do, and blocks exactly where training could not run."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch

from fmri_scale.cli import main
from fmri_scale.config import load_config
from fmri_scale.training.doctor import (
    BLOCK,
    NOTE,
    OK,
    WARN,
    Finding,
    examine,
    machine,
    network,
    ranks,
    software,
    storage,
)
from fmri_scale.training.doctor.findings import as_lines, merged
from tests.helpers.tiny_training import arguments, write_tiny_corpus

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny corpus."""
    return write_tiny_corpus(tmp_path_factory.mktemp("doctor") / "corpus")


def levels(findings):
    return {finding.check: finding.level for finding in findings}


def only(findings):
    (finding,) = findings
    return finding


def test_fit_machine_has_nothing_that_blocks_and_nothing_is_left_behind(corpus, tmp_path):
    config = load_config([], arguments(tmp_path / "run", corpus))
    before = sorted(tmp_path.rglob("*"))
    found = examine(config, CPU)
    assert BLOCK not in levels(found).values(), found
    assert {"packages", "kernels", "batch", "predicted", "corpus", "reading", "run folder", "disk space"} <= set(
        levels(found)
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_every_fault_has_a_remedy_and_makes_the_exit_code_1(corpus, tmp_path, capsys):
    items = arguments(tmp_path / "run", tmp_path / "nowhere", optim__global_batch=6, optim__micro_batch=2)
    assert main(["doctor", *items, "--json"]) == 1
    found = {f["check"]: f for f in json.loads(capsys.readouterr().out)}
    assert found["corpus"]["level"] == BLOCK
    assert "nowhere: no such corpus" in found["corpus"]["found"]
    assert all(f["remedy"] for f in found.values() if f["level"] in (BLOCK, WARN))
    assert main(["doctor", *arguments(tmp_path / "run", corpus)]) == 0
    assert "0 blocking" in capsys.readouterr().out


def test_batch_that_does_not_divide_blocks(corpus, tmp_path):
    config = load_config([], arguments(tmp_path, corpus, optim__global_batch=4))
    found = {f.check: f for f in examine(config, CPU, rank=1, world_size=3, ranks_here=3)}
    assert found["batch"].level == BLOCK
    assert "optim.global_batch=4 is not a multiple" in found["batch"].found


def test_package_out_of_range_or_missing_blocks(monkeypatch):
    wanted = ["torch>=2.6", "numpy>=99", "no-such-package-here>=1", 'mamba-ssm>=2; extra == "cuda"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    found = [f for f in software.versions() if f.level == BLOCK]
    assert ["numpy" in found[0].found, "no-such-package-here is not installed" in found[1].found] == [True, True]
    assert len(found) == 2


def test_kernels_that_disagree_block(monkeypatch):
    config = load_config([])
    assert levels(software.kernels(config, CPU))["kernels"] == OK
    honest = software.scan

    def wrong(x, *rest, **more):
        return honest(x, *rest, **more) * (1 + 0.02 * (x.dtype == torch.float32))

    monkeypatch.setattr(software, "scan", wrong)
    assert levels(software.kernels(config, CPU))["kernels"] == BLOCK


def test_settings_that_slow_or_break_are_named():
    found = list(machine.environment({"NCCL_P2P_DISABLE": "1", "OMP_NUM_THREADS": "1"}, ranks_here=1))
    assert (only(found).level, "NCCL_P2P_DISABLE=1" in only(found).found) == (WARN, True)
    found = only(machine.environment({"GLOO_SOCKET_IFNAME": "eth99", "OMP_NUM_THREADS": "1"}, 1))
    assert found.level == BLOCK
    assert "eth99" in found.found
    names = {"NCCL_SOCKET_IFNAME": "^docker,lo", "GLOO_SOCKET_IFNAME": "=lo", "OMP_NUM_THREADS": "1"}
    assert not list(machine.environment(names, 1))
    found = only(machine.environment({}, ranks_here=4 * (os.cpu_count() or 1)))
    assert "OMP_NUM_THREADS=unset" in found.found
    assert "export OMP_NUM_THREADS=1" in found.remedy


def test_memory_that_is_not_there_blocks(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 1e9)
    assert levels(machine.memory(256, ranks_here=2))["memory"] == OK
    assert levels(machine.memory(256, ranks_here=8))["memory"] == BLOCK


def test_slow_reading_is_told_with_what_is_needed(corpus, tmp_path):
    config = load_config([], arguments(tmp_path, corpus))
    found = {f.check: f for f in storage.corpora(config, needed_bytes_per_s=1e15, look_at_all=True)}
    assert found["reading"].level == WARN
    assert "need 1,000,000,000 MB/s" in found["reading"].found


def test_full_disk_and_missing_shard_block(corpus, tmp_path, monkeypatch):
    config = load_config([], arguments(tmp_path, corpus))
    found = {f.check: f for f in storage.run_folder(config, checkpoint_bytes=1e18)}
    assert found["disk space"].level == BLOCK
    assert found["run folder"].level == WARN  # a checkpoint would take for ever
    broken = tmp_path / "corpus"
    broken.mkdir()
    for path in corpus.iterdir():
        if path.name != "shards":
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / "shards").mkdir()
    config = load_config([], arguments(tmp_path / "run", broken))
    assert {f.check: f for f in examine(config, CPU)}["corpus"].level == BLOCK


def test_wandb_that_cannot_be_reached_is_no_obstacle(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert only(network.wandb(load_config([], ["log.wandb=offline"]))).level == NOTE
    with socket.socket() as silent, socket.socket() as answering:
        silent.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        found = only(network.wandb(load_config([], ["log.wandb=online"])))
        assert (found.level, "offline" in found.remedy) == (WARN, True)
        answering.bind(("127.0.0.1", 0))
        answering.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{answering.getsockname()[1]}")
        assert only(network.wandb(load_config([], ["log.wandb=online"]))).level == OK


def note(host="a", **more):
    base = {"host": host, "configuration": "c0", "values": "{}", "corpus": "d0", "software": "s0"}
    return {**base, "gpu": "none", "time": time.time(), **more}


def test_ranks_with_another_corpus_configuration_or_software_block():
    agree = list(ranks.agreement([note("a"), note("b")]))
    assert set(levels(agree).values()) == {OK}
    other = note("b", configuration="c1", values=json.dumps({"optim": {"lr": 2}}))
    notes = [
        note("a", values=json.dumps({"optim": {"lr": 1}})),
        other,
        note("c", corpus="d1"),
        note("d", software="s1"),
    ]
    found = list(ranks.agreement(notes))
    blocked = [f for f in found if f.level == BLOCK]
    assert {f.check for f in blocked} == {f"{what} of all ranks" for what in ranks.MUST_AGREE}
    assert "c1 on b (optim.lr 1 -> 2)" in {f.found for f in blocked}
    assert {f.ranks for f in blocked if "d1" in f.found} == {(2,)}


def test_uneven_machines_clocks_and_gpus_are_told():
    notes = [note("a", gpu="H100"), note("a", gpu="H100"), note("b", gpu="A100", time=time.time() - 60)]
    found = {f.check: f.level for f in ranks.agreement(notes)}
    assert (found["machines"], found["GPUs"], found["clocks"]) == (WARN, WARN, WARN)


def test_findings_of_many_ranks_become_few_lines():
    fine, bad = Finding("reading", OK, "900 MB/s"), Finding("GPU", WARN, "busy", "free it")
    findings = merged([[fine, bad], [Finding("reading", OK, "901 MB/s")], [fine, bad], [bad]])
    lines = list(as_lines(findings, 4))
    assert lines == ["OK    reading: 900 MB/s", "WARN  GPU: busy [rank 0,2-3]", "      -> free it"]


def test_read_speed_counts_only_what_was_read(tmp_path):
    file = tmp_path / "shard.tar"
    file.write_bytes(os.urandom(9 << 20))
    speed, _ = storage.read_speed([file, Path(__file__)])
    assert speed > 0


def test_a_rank_that_lacks_an_entry_of_a_mapping_is_told_which():
    first, other = (
        {"values": json.dumps({"mask": {"mixture": m}})} for m in ({"token": 1.0, "tube": 2.0}, {"token": 1.0})
    )
    assert ranks._changed_keys(first, other) == " (mask.mixture.tube 2.0 -> None)"
    assert ranks._changed_keys(other, first) == " (mask.mixture.tube None -> 2.0)"
