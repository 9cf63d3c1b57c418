"""The model computes what the published NeuroSTORM computes, forward and backward, and the command says so."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmri_scale.cli import main
from fmri_scale.cli.parity import compare, read_case, relative_error

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


def test_all_golden_cases_are_there():
    assert len(CASES) == 9


@pytest.mark.parametrize(
    ("name", "codes"), [(name, False) for name in CASES] + [(name, True) for name in CASES if name.startswith("mae")]
)
def test_every_quantity_agrees_with_the_published_model(name, codes):
    case, arguments = read_case(GOLDEN / f"{name}.safetensors")
    errors = compare(case, arguments, torch.float32, "torch", torch.device("cpu"), codes)
    gradients = sum(key.startswith("param.") for key in case)
    quantities = 1 if name == "strd" else gradients + (3 if name.startswith("mae") else 2)
    assert len(errors) == quantities
    assert max(errors.values()) < 2e-5, max(errors, key=errors.get)


@pytest.fixture
def perturbed(tmp_path):
    """A case whose weights differ from those that made its numbers."""
    case = load_file(GOLDEN / "encoder_prompt.safetensors")
    case["param.layers.0.blocks.0.mamba.D"] *= 1.01
    save_file(case, tmp_path / "wrong.safetensors")
    (tmp_path / "wrong.json").write_text((GOLDEN / "encoder_prompt.json").read_text())
    return tmp_path / "wrong.safetensors"


def test_parity_command_passes_what_agrees_and_fails_what_does_not(perturbed, capsys):
    good = str(GOLDEN / "encoder_prompt.safetensors")
    assert main(["parity", good, "--tol", "2e-5", "--dtype", "fp64"]) == 0
    assert "within the tolerance" in capsys.readouterr().out
    assert main(["parity", good, str(perturbed)]) == 1
    printed = capsys.readouterr().out
    assert "above the tolerance" in printed
    assert "layers." in printed.splitlines()[2]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_is_above_any_tolerance(odd, tmp_path, capsys):
    finite = torch.tensor([1.0, 2.0])
    for ours, theirs in ((finite * odd, finite), (finite, finite * odd), (finite * odd, finite * odd)):
        assert relative_error(ours, theirs) == float("inf")
    case = load_file(GOLDEN / "encoder_prompt.safetensors")
    case["latent"] = case["latent"] * odd
    save_file(case, tmp_path / "odd.safetensors")
    (tmp_path / "odd.json").write_text((GOLDEN / "encoder_prompt.json").read_text())
    assert main(["parity", str(tmp_path / "odd.safetensors"), "--tol", "inf"]) == 1
    assert "above the tolerance" in capsys.readouterr().out


def test_parity_names_a_device_that_is_not_there(capsys):
    assert main(["parity", str(GOLDEN / "strd.safetensors"), "--device", "gpu"]) == 2
    assert "device 'gpu' cannot be used" in capsys.readouterr().err


def test_parity_names_a_file_it_cannot_read(tmp_path, capsys):
    assert main(["parity", str(tmp_path / "absent.safetensors")]) == 2
    assert "absent.safetensors" in capsys.readouterr().err
    (tmp_path / "text.safetensors").write_text("not tensors")
    (tmp_path / "text.json").write_text("{}")
    assert main(["parity", str(tmp_path / "text.safetensors")]) == 2
    assert "text.safetensors: cannot be read" in capsys.readouterr().err


def test_parity_names_what_a_file_lacks(tmp_path, capsys):
    save_file({"volume": torch.zeros(1)}, tmp_path / "case.safetensors")
    (tmp_path / "case.json").write_text("{}")
    assert main(["parity", str(tmp_path / "case.safetensors")]) == 2
    assert "it lacks 'img_size'" in capsys.readouterr().err


def test_parity_names_a_weight_that_is_missing(tmp_path, capsys):
    case = load_file(GOLDEN / "encoder_prompt.safetensors")
    del case["param.layers.1.downsample.norm.bias"]
    save_file(case, tmp_path / "case.safetensors")
    (tmp_path / "case.json").write_text(json.dumps(json.loads((GOLDEN / "encoder_prompt.json").read_text())))
    assert main(["parity", str(tmp_path / "case.safetensors")]) == 2
    assert "1 missing: layers.1.downsample.norm.bias" in capsys.readouterr().err


def test_relative_error_of_zero_is_zero_or_infinite():
    zero, one = torch.zeros(2), torch.ones(2)
    assert relative_error(zero, zero) == 0.0
    assert relative_error(one, zero) == float("inf")
    assert relative_error(1.5 * one, one) == pytest.approx(0.5)
