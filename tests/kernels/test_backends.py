"""The backend: chosen by device, logged once, never replaced silently."""

import importlib
import logging

import pytest
import torch

from fmri_scale.errors import ConfigError
from fmri_scale.kernels import Windows, backends, conv, scan, select_backend
from fmri_scale.kernels.conv import cases as conv_cases
from fmri_scale.kernels.scan import cases as scan_cases


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends.resolve.cache_clear()
    backends._log_once.cache_clear()
    yield
    backends.resolve.cache_clear()


def test_auto_follows_the_device():
    assert select_backend("auto", "cpu") == "torch"
    assert backends.resolve("auto", "cuda") == "triton"


def test_choice_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="fmri_scale"):
        select_backend("auto", "cpu")
        select_backend("auto", "cpu")
    assert [r.message for r in caplog.records] == ["kernels: torch on cpu (chosen for auto)"]


def test_triton_without_a_device_is_refused():
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        select_backend("triton", "cpu")


def test_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="'cuda': expected one of auto, torch, triton, mamba_ssm"):
        select_backend("cuda", "cpu")


def test_mamba_ssm_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(backends, "has_mamba", lambda: False)
    with pytest.raises(ConfigError, match=r"MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"):
        backends.resolve("mamba_ssm", "cuda")
    with pytest.raises(ConfigError, match="CUDA devices only"):
        select_backend("mamba_ssm", "cpu")


SMALL = Windows((2, 2, 2, 4), (2, 2, 1, 2), (1, 0, 0, 1))


@pytest.mark.parametrize(
    ("function", "case", "cases"),
    [
        (conv.conv_silu, conv_cases.ConvCase(2, SMALL, 6, has_prefix=True), conv_cases),
        (scan.scan, scan_cases.ScanCase(2, SMALL, 6, states=2, has_h0=True), scan_cases),
    ],
    ids=["conv", "scan"],
)
def test_definitions_train_where_they_are_what_runs(function, case, cases, monkeypatch):
    """On a GPU without Triton, or with backend torch: the operator's gradients come from the definition."""
    inputs = [v.requires_grad_() for v in cases.make_inputs(case, torch.float64).values()]
    call = (*inputs[:-1], SMALL, inputs[-1])
    wanted = torch.autograd.grad(function(*call).square().sum(), inputs)
    folder = function.__module__
    reference = importlib.import_module(f"{folder}.reference")
    monkeypatch.setattr(importlib.import_module(f"{folder}.op"), "implementation", lambda *_: reference)
    found = torch.autograd.grad(function(*call).square().sum(), inputs)
    torch.testing.assert_close(found, wanted)
