"""The backend: chosen by device, logged once, never replaced silently."""

import logging

import pytest

from fmri_scale.errors import ConfigError
from fmri_scale.kernels import backends, select_backend


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
