"""The exported graph is torch alone, computes what the model computes, and is not written if it does not."""

import subprocess
import sys

import pytest
import torch

import fmri_scale
from fmri_scale import cli
from fmri_scale.errors import CheckpointError, ConfigError
from fmri_scale.kernels import Windows
from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.scan import scan
from fmri_scale.release import graph
from fmri_scale.release.export import export
from fmri_scale.release.reference import reference_clip
from tests.helpers.tiny_run import tiny_config, tiny_model, write_run

GEOMETRIES = [
    Windows((2, 2, 2, 4), (2, 2, 2, 4)),
    Windows((4, 4, 2, 4), (2, 2, 2, 2), (1, 1, 0, 1)),
    Windows((3, 2, 2, 6), (3, 1, 2, 3), (0, 1, 1, 1)),
    Windows((1, 1, 1, 7), (1, 1, 1, 7)),
]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    windows = {"window_size": [2, 2, 2, 2], "first_window_size": [2, 2, 2, 2]}
    shape = tiny_model(**windows, depths=[1, 1], num_frames=5, prompt_len=3)
    write_run(folder / "run", tiny_config(shape))
    return export(folder / "run", folder / "release")


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("windows", GEOMETRIES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("has_h0", [False, True])
def test_plain_scan_is_the_scan(windows, reverse, has_h0):
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    x, dt = draw(2, windows.num_tokens, 6), draw(2, windows.num_tokens, 6).exp()
    A, B, C, D = -draw(6, 3).exp(), draw(2, windows.num_tokens, 3), draw(2, windows.num_tokens, 3), draw(6)
    h0 = draw(6, 3) if has_h0 else None
    wanted = scan(x, dt, A, B, C, D, windows, h0, reverse)
    found = graph.plain_scan(x, dt, A, B, C, D, h0, windows.grid, windows.window, windows.shift, reverse, "auto")
    assert relative(found, wanted) < 1e-12


@pytest.mark.parametrize("windows", GEOMETRIES, ids=str)
@pytest.mark.parametrize("has_prefix", [False, True])
def test_plain_convolution_is_the_convolution(windows, has_prefix):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, windows.num_tokens, 6, generator=rng, dtype=torch.float64)
    weight, bias = torch.randn(6, 4, generator=rng).double(), torch.randn(6, generator=rng).double()
    prefix = torch.randn(3, 6, generator=rng).double() if has_prefix else None
    wanted = conv_silu(x, weight, bias, windows, prefix)
    found = graph.plain_conv_silu(x, weight, bias, prefix, windows.grid, windows.window, windows.shift, "auto")
    assert relative(found, wanted) < 1e-12


def test_graph_runs_where_there_is_only_torch(release, tmp_path, capsys):
    """Written by the command, loaded in a process that cannot import this package; the numbers agree."""
    path = tmp_path / "encoder.pt2"
    assert cli.main(["export-graph", str(release), "--out", str(path)]) == 0
    assert "relative deviation" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.pt2"]
    model = fmri_scale.from_pretrained(release)
    clips = reference_clip(model, 5) * torch.linspace(0.5, 1.5, 3).view(3, 1, 1, 1, 1, 1)
    torch.save(clips, tmp_path / "clips.pt")
    body = """
import sys
sys.modules["fmri_scale"] = sys.modules["sharding"] = None
import torch
encoder = torch.export.load(sys.argv[1]).module()
clips = torch.load(sys.argv[2], weights_only=True)
torch.save([encoder(clips), encoder(clips[:1])], sys.argv[3])
"""
    command = [sys.executable, "-c", body, str(path), str(tmp_path / "clips.pt"), str(tmp_path / "out.pt")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    (features, latent), (one, _) = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.inference_mode():
        assert relative(features, model.features(clips)) < 1e-5
        assert relative(latent, model(clips)) < 1e-5
    assert relative(one, features[:1]) < 1e-5
    assert path.stat().st_size < 4 * (release / "model.safetensors").stat().st_size + 4_000_000
    assert cli.main(["export-graph", str(release), "--out", str(path)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_graph_that_deviates_is_not_written(release, tmp_path, monkeypatch):
    class Wrong:
        def module(self):
            return lambda volume: (torch.zeros(len(volume), 16), torch.zeros(len(volume), 16, 2, 2, 2, 5))

    monkeypatch.setattr(graph, "record", lambda model: None)
    monkeypatch.setattr(torch.export, "save", lambda program, path: path.write_bytes(b"x"))
    monkeypatch.setattr(torch.export, "load", lambda path: Wrong())
    with pytest.raises(CheckpointError, match="deviates from the model by"):
        graph.export_graph(fmri_scale.from_pretrained(release), tmp_path / "encoder.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_finite_is_not_written(release, tmp_path, monkeypatch):
    class Empty:
        def module(self):
            return lambda volume: (torch.zeros(len(volume), 16), torch.full((len(volume), 16, 2, 2, 2, 5), torch.nan))

    model = fmri_scale.from_pretrained(release)
    monkeypatch.setattr(graph, "EncoderGraph", lambda model: Empty().module())
    monkeypatch.setattr(graph, "record", lambda model: None)
    monkeypatch.setattr(torch.export, "save", lambda program, path: path.write_bytes(b"x"))
    monkeypatch.setattr(torch.export, "load", lambda path: Empty())
    with pytest.raises(CheckpointError, match="deviates from the model by inf"):
        graph.export_graph(model, tmp_path / "encoder.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", r"device 'gpu' cannot be used: .*; this machine has cpu"), ("cuda:99", "device 'cuda:99' cannot be used")],
)
def test_a_device_that_is_not_there_is_named_with_those_that_are(release, device, message):
    with pytest.raises(ConfigError, match=message):
        fmri_scale.from_pretrained(release, device=device)


@pytest.mark.parametrize("name", ["encoder.onnx", "none/encoder.pt2"])
def test_a_name_that_cannot_be_is_refused(release, tmp_path, name):
    with pytest.raises(CheckpointError, match=r"\.pt2"):
        graph.export_graph(fmri_scale.from_pretrained(release), tmp_path / name)
