"""Versions of the packages against what pyproject.toml asks for, and whether the kernels run and agree."""

import importlib.metadata
import platform
from collections.abc import Iterator

import torch
from packaging.requirements import Requirement

from fmri_scale.config import Config
from fmri_scale.errors import ConfigError
from fmri_scale.kernels import Windows, backends, select_backend
from fmri_scale.kernels.scan import scan
from fmri_scale.training.doctor.findings import BLOCK, NOTE, OK, WARN, Finding

PACKAGE = "fmri-scale"
CLOSE = 1e-2
"Largest relative difference from the reference in float32; TF32 and another order of sums stay well below."


def versions() -> Iterator[Finding]:
    """Yield a finding for every dependency that is missing or out of range, else one for all."""
    yield Finding("Python", OK, f"{platform.python_version()} on {platform.system()} {platform.release()}")
    wrong = list(_wrong_packages())
    yield from wrong
    if not wrong:
        names = ("torch", "deepspeed", "triton", "webdataset", "numpy")
        listed = [f"{name} {found}" for name in names if (found := _installed(name))]
        yield Finding("packages", OK, ", ".join(listed))
    if torch.cuda.is_available():
        yield Finding("CUDA", OK, f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")


def _wrong_packages() -> Iterator[Finding]:
    for text in importlib.metadata.requires(PACKAGE) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _installed(requirement.name)
        if found is None:
            yield Finding("packages", BLOCK, f"{requirement.name} is not installed", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield Finding("packages", BLOCK, f"{requirement.name} {found}, wanted {wanted}", f"pip install '{wanted}'")


def kernels(config: Config, device: torch.device) -> Iterator[Finding]:
    """Yield which backend runs here and whether its result is the reference's."""
    triton = _installed("triton")
    if device.type == "cuda" and not triton:
        yield Finding("Triton", BLOCK, "not installed: the kernels would run as slow references", "pip install triton")
    if backends.has_mamba():
        yield Finding("mamba-ssm", OK, f"{_installed('mamba-ssm')}, with its CUDA scan")
    elif device.type == "cuda":
        yield Finding("mamba-ssm", NOTE, f"not installed with its CUDA scan (optional: {backends.MAMBA_HINT})")
    chosen = select_backend(config.model.backend, device)
    difference = _difference(config.model.backend, device)
    remedy = "clear Triton's cache (~/.triton), see that the driver fits; model.backend=torch runs without"
    level = OK if difference < CLOSE else BLOCK
    yield Finding("kernels", level, f"{chosen} on {device.type}, off the reference by {difference:.1e}", remedy)


def _difference(backend: str, device: torch.device) -> float:
    """Return the relative difference of a small scan between the chosen backend and float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    windows = Windows((4, 4, 4, 4), (2, 2, 2, 2), (1, 1, 1, 1))
    tokens, width, states = 256, 24, 16
    x, dt, b, c = (torch.rand(2, tokens, n, generator=generator) for n in (width, width, states, states))
    a, d = -torch.rand(width, states, generator=generator), torch.rand(width, generator=generator)
    try:
        on = [value.to(device) for value in (x, dt, a, b, c, d)]
        here = scan(on[0], on[1], on[2], on[3], on[4], on[5], windows, backend=backend)
    except RuntimeError as error:  # a compiler or driver that fails says so in many lines
        raise ConfigError(f"the kernels do not run on {device}: {str(error).strip().splitlines()[-1]}") from error
    off = [value.double() for value in (x, dt, a, b, c, d)]
    reference = scan(off[0], off[1], off[2], off[3], off[4], off[5], windows, backend="torch")
    return float((here.double().cpu() - reference).norm() / reference.norm())


def device(config: Config, place: torch.device) -> Iterator[Finding]:
    """Yield what GPU this rank has and whether it is free and fit."""
    if place.type != "cuda":
        yield from _no_gpu()
        return
    properties = torch.cuda.get_device_properties(place)
    free, total = torch.cuda.mem_get_info(place)
    capability = f"{properties.major}.{properties.minor}"
    yield Finding("GPU", OK, f"{properties.name}, {total / 1e9:.0f} GB, compute capability {capability}")
    if free < 0.9 * total:
        used = (total - free) / 1e9
        yield Finding("GPU memory", WARN, f"{used:.1f} GB in use already", "end the other processes (nvidia-smi)")
    if config.engine.dtype == "bf16" and properties.major < 8:
        remedy = "set engine.dtype=fp32, or use a GPU of 2020 or later"
        yield Finding("bf16", BLOCK, f"compute capability {capability} has no bf16 matrix products", remedy)


def _no_gpu() -> Iterator[Finding]:
    if torch.version.cuda is None:
        yield Finding("GPU", NOTE, "torch is built without CUDA: trains on the CPU")
    elif torch.cuda.device_count() == 0:
        remedy = "see nvidia-smi; a container needs --gpus all; CUDA_VISIBLE_DEVICES must not be empty"
        yield Finding("GPU", WARN, "torch is built for CUDA but sees no GPU: trains on the CPU", remedy)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
