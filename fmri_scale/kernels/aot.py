"""Compile what a launcher would launch, for any GPU, on a machine that has none; then count registers and instructions.

`compiled(arch)` makes Triton believe in a device of that architecture and turns every launch into a compilation, so
that the signature, the constants and the alignment of the arguments are those of the real call. Tensors may be on the
`meta` device. The disassembler comes with the triton package. This cannot share a process with Triton's interpreter.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fmri_scale.kernels import backends, tuning
from fmri_scale.kernels.machine import Loop, loops_of

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"Bytes of shared memory a program may use (CUDA C++ Programming Guide, table of compute capabilities; AMD CDNA3 ISA)."


@dataclass
class Compiled:
    """One kernel as compiled for one architecture."""

    name: str
    arch: str
    registers: int
    spilled: int
    "Bytes of stack a thread needs beyond its registers."
    shared: int
    "Bytes of shared memory of a program."
    num_warps: int
    "Warps of a program: 32 threads on NVIDIA's GPUs, 64 on AMD's."
    grid: tuple[int, ...]
    "Programs of the launch."
    constants: dict[str, Any]
    total: int
    "Instructions of the whole kernel."
    loops: list[Loop]


@contextlib.contextmanager
def compiled(arch: str) -> Iterator[list[Compiled]]:
    """Collect every kernel that is launched inside, compiled for `arch` (`sm_90`, `gfx942`) and not run."""
    if backends.interpreting():
        raise RuntimeError("TRITON_INTERPRET=1: kernels are interpreted in this process and cannot be compiled")
    found: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append(_inspect(kernel, arch, grid, {k: v for k, v in kwargs.items() if k.isupper()}))

    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(_Pretend(arch))
    tuning._pretended.append(arch)
    try:
        with mock.patch.object(JITFunction, "run", compile_only):
            yield found
    finally:
        tuning._pretended.pop()
        triton.runtime.driver._active = before


class _Pretend:
    """A driver without a device; each architecture has its own device number, by which Triton keeps its caches."""

    def __init__(self, arch: str) -> None:
        number = int(re.sub(r"\D", "", arch))
        self.target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", number, 32)
        self.number = number

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def _inspect(kernel: Any, arch: str, grid: tuple[int, ...], constants: dict[str, Any]) -> Compiled:
    kernel = kernel.result() if hasattr(kernel, "result") else kernel
    amd = arch.startswith("gfx")
    code, registers, spilled = _amd(kernel.asm["amdgcn"]) if amd else _nvidia(kernel.asm["cubin"])
    total, loops = loops_of(code, amd)
    meta = kernel.metadata
    return Compiled(
        meta.name, arch, registers, spilled, meta.shared, meta.num_warps, grid, constants, total=total, loops=loops
    )


def _amd(text: str) -> tuple[str, int, int]:
    """Assembly, vector registers and those that spill."""
    registers, spilled = (max(map(int, re.findall(rf"\.{n}_count:\s+(\d+)", text))) for n in ("vgpr", "vgpr_spill"))
    return text, registers, spilled


def _nvidia(cubin: bytes) -> tuple[str, int, int]:
    """Disassembly, registers and bytes that spill."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", str(path))
        code = _tool("nvdisasm", "-c", str(path))
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cuobjdump did not report a kernel's resources: {usage[:200]}")
    return code, int(match[1]), max(int(match[2]), int(match[3]))


def _tool(name: str, *args: str) -> str:
    import triton.backends.nvidia as nvidia

    path = Path(nvidia.__file__).parent / "bin" / name
    return subprocess.run([str(path), *args], capture_output=True, text=True, check=True).stdout
