"""Foreign checkpoints are read as data: what they hold comes out equal, what they try to do never happens."""

import argparse
import json
import pathlib
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from fmri_scale.release.pickle_reader import MAX_PICKLE_BYTES, read_pickle
from fmri_scale.release.pickle_values import Named, TensorRef, UnsafePickleError
from fmri_scale.release.torch_file import TorchFile
from tests.helpers import malicious

LIVE = sorted(malicious.live("x"))
DEAD = malicious.dead()


def read_all(path: Path) -> dict:
    """Read a file as an import does: the content, then the values of every tensor of its state dict."""
    file = TorchFile(path)
    content = file.content
    state = content.get("state_dict", {}) if isinstance(content, dict) else {}
    return {name: file.tensor(ref) for name, ref in state.items() if isinstance(ref, TensorRef)}


def test_a_real_checkpoint_reads_back_equal(tmp_path):
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    optimizer = torch.optim.AdamW(layers.parameters())
    layers(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    tensors = {
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "part": torch.arange(12)[3:7:2],
        "bf16": torch.randn(3).bfloat16(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.0),
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(
        {
            "state_dict": layers.state_dict(),
            "tensors": tensors,
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": argparse.Namespace(img_size=[96, 96, 96, 20], path=pathlib.Path("/a/b"), x={1}),
            "best": np.float32(2.5),
            "table": np.arange(3),
            "size": torch.Size([1, 2]),
            "dtype": torch.float32,
        },
        tmp_path / "real.ckpt",
    )
    file = TorchFile(tmp_path / "real.ckpt")
    for name, value in layers.state_dict().items():
        assert torch.equal(file.tensor(file.content["state_dict"][name]), value)
    for name, value in tensors.items():
        read = file.tensor(file.content["tensors"][name])
        assert read.dtype == value.dtype
        assert read.shape == value.shape
        assert torch.equal(read, value.data)
    assert file.content["hyper_parameters"] == {"img_size": [96, 96, 96, 20], "path": "/a/b", "x": [1]}
    assert file.content["size"] == (1, 2)
    assert isinstance(file.content["best"], Named)


@pytest.mark.parametrize("kind", LIVE)
def test_code_in_a_pickle_is_refused_and_not_run(kind, tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "evil.ckpt"
    path.write_bytes(malicious.torch_zip(malicious.live(str(canary))[kind]))
    with pytest.raises(UnsafePickleError, match=r"evil\.ckpt: refused: .*nothing in the file was run"):
        read_all(path)
    assert not canary.exists()


@pytest.mark.parametrize("kind", sorted(DEAD))
def test_a_lying_file_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(DEAD[kind])
    with pytest.raises(UnsafePickleError, match=r"evil\.ckpt: refused: "):
        read_all(path)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.ckpt"]


def _script(body: str, *args: object) -> str:
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]


def test_every_live_pickle_would_run_under_the_standard_unpickler(tmp_path):
    """The control: the canaries are alive, so their silence elsewhere means that nothing ran."""
    body = """
        import io, pathlib, pickle, sys, torch
        from tests.helpers import malicious
        class Unpickler(pickle.Unpickler):
            def persistent_load(self, pid): return torch.FloatStorage(4)
        folder = pathlib.Path(sys.argv[1])
        for kind in malicious.live("x"):
            data = malicious.live(str(folder / kind))[kind]
            try: Unpickler(io.BytesIO(data)).load()
            except BaseException: pass
        print("done")
    """
    _script(body, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == LIVE


def test_reading_all_of_them_imports_opens_and_starts_nothing(tmp_path):
    """Python's own audit events, and the memory taken, over the whole set."""
    body = """
        import json, pathlib, sys, tracemalloc
        from tests.helpers import malicious
        from tests.unit import test_release_pickle as own
        folder = pathlib.Path(sys.argv[1])
        files = dict(malicious.dead())
        for kind in malicious.live("x"):
            files[kind] = malicious.torch_zip(malicious.live(str(folder / "canary"))[kind])
        good = malicious.torch_zip(malicious.dump({"state_dict": {}}))
        for name, content in {"good": good, **files}.items():
            (folder / name).write_bytes(content)
        own.read_all(folder / "good")
        events, peaks, watching = [], {}, False
        def hook(event, args):
            if not watching: return
            writes = event == "open" and not (isinstance(args[0], str) and args[2] & 3 == 0)
            if writes or event in ("exec", "compile", "import", "ctypes.dlopen", "marshal.loads", "code.__new__") \\
                    or event.split(".")[0] in ("os", "subprocess", "socket", "pickle", "shutil", "webbrowser", "pty"):
                events.append([event, repr(args)[:200]])
        sys.addaudithook(hook)
        tracemalloc.start()
        refused = 0
        for name in files:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            watching = True
            try: own.read_all(folder / name)
            except own.UnsafePickleError: refused += 1
            watching = False
            peaks[name] = tracemalloc.get_traced_memory()[1] - before
        print(json.dumps({"refused": refused, "events": events, "files": len(files), "peak": max(peaks.values()),
            "canary": (folder / "canary").exists()}))
    """
    found = json.loads(_script(body, tmp_path))
    assert found["files"] == len(LIVE) + len(DEAD) >= 30
    assert found["refused"] == found["files"]
    assert found["events"] == []
    assert not found["canary"]
    assert found["peak"] < 200 * 2**20


def test_a_name_may_be_allowed_and_stays_a_label():
    data = malicious.dump({"logger": malicious.Call(malicious.Name("lab.logging", "Logger"), 1)})
    with pytest.raises(UnsafePickleError, match=r"'lab\.logging\.Logger'"):
        read_pickle(data)
    assert read_pickle(data, allow=["lab.logging.Logger"]) == {"logger": Named("lab.logging.Logger", is_class=False)}


def test_a_pickle_that_only_claims_a_large_memo_costs_nothing():
    assert read_pickle(b"\x80\x02}r\xff\xff\xff\x7f.") == {}


def test_a_pickle_of_the_largest_size_is_read():
    data = b"\x80\x02" + b"N0" * ((MAX_PICKLE_BYTES - 4) // 2) + b"}."
    assert read_pickle(data) == {}


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(Exception, match=r"none\.ckpt: cannot be read: No such file"):
        TorchFile(tmp_path / "none.ckpt")
