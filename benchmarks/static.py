"""What every kernel compiles to, for GPUs that need not be there: registers, spills, shared memory, instructions.

python benchmarks/static.py [--arch sm_80 sm_90 sm_100 gfx942] [--batch 32] [--ops scan conv ...]

Compiles each kernel at the shapes of the base model's stages as its launcher would launch it, disassembles it and
counts. Needs torch, triton and numpy, and no GPU. Writes benchmarks/results/static.json and .md; exits with 1 where a
kernel spills registers or needs more shared memory than a program may have. These are facts about machine code, not
times: how long a kernel takes is for benchmarks/kernels.py to measure.
"""

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
import triton
from machine import processor  # beside this file

from fmri_scale.kernels import aot
from fmri_scale.kernels.launches import OPERATIONS, Launch, launches, slots

ROOT = Path(__file__).resolve().parents[1]
THREAD_REGISTERS = 65_536
"Registers of a multiprocessor of 32 bits (CUDA C++ Programming Guide, compute capabilities 8.0 to 10.0)."
MOST_WARPS = {"sm_80": 64, "sm_90": 64, "sm_100": 64}


def main() -> int:
    """Compile, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=[*aot.ARCHITECTURES, "gfx942"])
    parser.add_argument("--batch", type=int, default=32, help="clips of a launch; it decides the scan's tiles")
    parser.add_argument("--ops", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    rows = [row for arch in args.arch for op in args.ops for row in compile_op(arch, op, args.batch)]
    record: dict[str, Any] = {"command": " ".join(["python benchmarks/static.py", *sys.argv[1:]])}
    record |= {"date": date.today().isoformat(), "machine": f"{processor()}, no GPU needed", "batch": args.batch}
    record |= {"triton": triton.__version__, "torch": torch.__version__, "python": platform.python_version()}
    record["rows"] = rows
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "static.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "static.md").write_text(report(record))
    print(report(record))
    bad = [row for row in rows if row["spilled_bytes"] or row["shared_bytes"] > aot.SHARED_LIMIT[row["arch"]]]
    for row in bad:
        print(f"benchmarks/static.py: {row['kernel']} {row['stage']} on {row['arch']} spills or needs too much shared")
    return 1 if bad else 0


def compile_op(arch: str, op: str, batch: int) -> list[dict[str, Any]]:
    """Rows of one operation at all its shapes."""
    rows = []
    for launch in launches(op, batch):
        with aot.compiled(arch) as found:
            launch.call()
        rows += [describe(entry, launch) for entry in found]
    return rows


def describe(entry: aot.Compiled, launch: Launch) -> dict[str, Any]:
    """One row."""
    inner, whole = slots(entry, launch)
    channels = entry.constants.get("MAIN", 0) + entry.constants.get("TAIL", 0)
    row: dict[str, Any] = {
        "kernel": entry.name.removesuffix("_kernel"),
        "op": launch.op,
        "direction": launch.direction,
        "arch": entry.arch,
        "stage": launch.stage,
        "width": launch.width,
        "channels": channels,
        "num_warps": entry.num_warps,
        "registers": entry.registers,
        "spilled_bytes": entry.spilled,
        "shared_bytes": entry.shared,
        "warps_resident": resident(entry),
        "code": entry.total,
        "inner_per_token": inner,
        "whole_per_token": whole,
        "loops": [f"{loop.own} at depth {loop.depth}{'' if loop.works else ', searches'}" for loop in entry.loops],
    }
    if launch.op == "scan":
        row["slots_per_state"] = inner * 32 / (launch.width * entry.constants["S"])
    return row


def resident(entry: aot.Compiled) -> int | None:
    """Warps that fit on a multiprocessor by registers and shared memory; None for AMD's GPUs."""
    if entry.arch not in MOST_WARPS:
        return None
    by_registers = THREAD_REGISTERS // (-(-entry.registers // 8) * 8 * 32)
    by_shared = (aot.SHARED_LIMIT[entry.arch] // max(1, entry.shared + 1024)) * entry.num_warps
    return min(
        MOST_WARPS[entry.arch], by_registers // entry.num_warps * entry.num_warps, by_shared, 32 * entry.num_warps
    )


def report(record: dict[str, Any]) -> str:
    """The rows as Markdown."""
    head = ["kernel", "arch", "shape", "width", "channels", "warps", "registers", "spilled", "shared", "resident"]
    head += ["code", "loops / token", "all / token", "a state"]
    lines = [
        "# Kernels as compiled",
        "",
        f"`{record['command']}`, {record['date']}, {record['machine']}; Triton {record['triton']}, torch "
        f"{record['torch']}, Python {record['python']}; {record['batch']} clips, bf16.",
        "",
        "Compiled and disassembled, not run. Channels are those of a program; resident is how many warps a "
        "multiprocessor holds; code counts the kernel's instructions. A token's instructions are warp instructions "
        "(AMD: of 64 lanes): those of the loops that touch memory, and all; of the loss, for each hidden token; of the "
        "mask, for each unit; with every token counted as visible. A state is a (token, channel, state) of the scan: "
        "warp instructions times 32 lanes, as mamba_ssm's own kernels need 25.2 forward and 69 backward (sm_90).",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in record["rows"]:
        cells = [row[k] for k in ("kernel", "arch", "stage", "width", "channels", "num_warps", "registers")]
        cells += [row["spilled_bytes"], row["shared_bytes"], row["warps_resident"] or "", row["code"]]
        cells += [f"{row['inner_per_token']:.1f}", f"{row['whole_per_token']:.1f}"]
        cells += [f"{row['slots_per_state']:.1f}" if "slots_per_state" in row else ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
