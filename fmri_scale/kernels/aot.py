"""Compile what a launcher would launch, for any GPU, on a machine that has none; then count registers and instructions.

`compiled(arch)` makes Triton believe in a device of that architecture and turns every launch into a compilation, so
that the signature, the constants and the alignment of the arguments are those of the real call. Tensors may be on the
`meta` device. The disassembler comes with the triton package. This cannot share a process with Triton's interpreter.
"""

import collections
import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fmri_scale.kernels import backends, tuning

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
    constants: dict[str, Any]
    loops: list["Loop"] = field(default_factory=list)
    total: int = 0
    "Instructions of the whole kernel."


@dataclass
class Loop:
    """An innermost loop of the machine code."""

    instructions: int
    "Warp instructions of one pass."
    kinds: dict[str, int]
    "How many of each opcode."


@contextlib.contextmanager
def compiled(arch: str) -> Iterator[list[Compiled]]:
    """Collect every kernel that is launched inside, compiled for `arch` (`sm_90`, `gfx942`) and not run."""
    if backends.interpreting():
        raise RuntimeError("TRITON_INTERPRET=1: kernels are interpreted in this process and cannot be compiled")
    found: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append(_inspect(kernel, arch, {k: v for k, v in kwargs.items() if k.isupper()}))

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


def _inspect(kernel: Any, arch: str, constants: dict[str, Any]) -> Compiled:
    kernel = kernel.result() if hasattr(kernel, "result") else kernel
    entry = Compiled(kernel.metadata.name, arch, 0, 0, kernel.metadata.shared, kernel.metadata.num_warps, constants)
    if arch.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        entry.registers = max(int(n) for n in re.findall(r"\.vgpr_count:\s+(\d+)", text))
        entry.spilled = max(int(n) for n in re.findall(r"\.vgpr_spill_count:\s+(\d+)", text))
        return entry
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
        code = _tool("nvdisasm", "-c", str(cubin))
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cuobjdump did not report the resources of {kernel.metadata.name}: {usage[:200]}")
    entry.registers, entry.spilled = int(match[1]), max(int(match[2]), int(match[3]))
    entry.total, entry.loops = _loops(code)
    return entry


def _tool(name: str, *args: str) -> str:
    import triton.backends.nvidia as nvidia

    path = Path(nvidia.__file__).parent / "bin" / name
    return subprocess.run([str(path), *args], capture_output=True, text=True, check=True).stdout


def _loops(code: str) -> tuple[int, list[Loop]]:
    """Find the innermost backward branches of a disassembly and count what they enclose."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line.strip()):
            labels[label[1]] = len(lines)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(re.sub(r"^@!?U?P\w+\s+", "", instruction[1].strip()))
    spans = []
    for end, text in enumerate(lines):
        branch = re.search(r"BRA.*?`\((\.L_x_\d+)\)", text)
        start = labels.get(branch[1], end) if branch else end
        if start < end - 4:
            spans.append((start, end + 1))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    counts = [collections.Counter(t.split()[0].split(".")[0] for t in lines[a:b]) for a, b in inner]
    return len(lines), [Loop(sum(c.values()), dict(c.most_common())) for c in counts]
