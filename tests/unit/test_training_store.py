"""The ranks' store on rank 0 tells who reports an error; a store that does not answer holds no rank."""

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as torch_dist
from torch.distributed import distributed_c10d as c10d

from fmri_scale.errors import LaunchError, LostRankError
from fmri_scale.training import dist

SERVER = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""
LOST = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation")


@pytest.fixture
def server(monkeypatch):
    """A process with a store that this one is a client of."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    store = torch_dist.TCPStore("127.0.0.1", int(process.stdout.readline()), timeout=timedelta(seconds=20))
    monkeypatch.setattr(c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(torch_dist, "is_initialized", lambda: True)
    monkeypatch.setattr(torch_dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "_ANSWER_S", 0.5)
    yield process
    if process.poll() is None:
        os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_first_error_is_told_to_all(server, tmp_path):
    assert dist.announce("the disk is full")
    assert not dist.announce("another")
    found = dist.explain(LOST, tmp_path)
    assert isinstance(found, LaunchError)
    assert str(found) == "the disk is full"


def test_a_store_behind_a_cut_link_holds_no_rank(server, tmp_path):
    os.kill(server.pid, signal.SIGSTOP)
    found = dist.explain(LOST, tmp_path)
    assert isinstance(found, LostRankError)
    assert "lost another rank" in str(found)
    assert dist.announce(str(found))  # rank 1 speaks where rank 0 cannot be asked


def test_a_store_that_has_gone_holds_no_rank(server, tmp_path):
    server.kill()
    server.wait()
    assert isinstance(dist.explain(LOST, tmp_path), LostRankError)
