"""Each kernel at each stage of the base model: time, spread, and the fraction of its floor that is reached.

python benchmarks/kernels.py [--batch 1 8 32] [--ops scan conv ...] [--device H200] [--smoke]

On a machine with a GPU: median and the 20-80 % band of every operation, forward and backward, against the eager torch
definition, torch.compile of it and mamba_ssm where it is importable (baselines at batch 1: the definition keeps every
state). Without a GPU the floors and the prediction are written and the measured columns stay empty: the prediction is
the floor with the instructions that this code was compiled to (benchmarks/results/static.json, 32 clips). `--smoke`
runs every row once at reduced shapes on whatever device there is, to know that this script works, and writes to --out.
Needs torch, triton and numpy. Writes benchmarks/results/kernels_DEVICE.json and .md.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from kernel_calls import OPERATIONS, Row, rows_of  # beside this file

from fmri_scale.kernels import roofline

ROOT = Path(__file__).resolve().parents[1]
Times = dict[str, float]


def main() -> None:
    """Measure what can be measured, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--ops", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--device", choices=sorted(roofline.DEVICES), help="whose floors (default: the GPU's, or H200)")
    parser.add_argument("--smoke", action="store_true", help="every row once, small, on any device")
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results; required with --smoke)")
    args = parser.parse_args()
    if args.smoke and args.out is None:
        parser.error("--smoke: its figures mean nothing; say with --out where to write them")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = roofline.DEVICES[args.device or device_here(gpu)]
    batches = [1] if args.smoke else args.batch
    found = [
        measured(row, device, gpu is not None or args.smoke, args.smoke)
        for batch in batches
        for op in args.ops
        for row in rows_of(op, batch, args.smoke)
    ]
    record = {"command": " ".join(["python benchmarks/kernels.py", *sys.argv[1:]]), "date": date.today().isoformat()}
    record |= {"gpu": gpu, "floor_of": device.name, "smoke": args.smoke, "torch": torch.__version__}
    record |= {"triton": __import__("triton").__version__, "rows": found}
    write(record, (args.out or ROOT / "benchmarks/results") / f"kernels_{device.name}")


def device_here(gpu: str | None) -> str:
    """Name the table entry of this machine's GPU; H200 where there is none or another."""
    return next((known for known in roofline.DEVICES if known in (gpu or "")), "H200")


def measured(row: Row, device: roofline.Device, run: bool, once: bool) -> dict[str, Any]:
    """One row of the table; what was not run is not there."""
    floor, binding = row.work.floor(device)
    found: dict[str, Any] = {"kernel": row.op, "direction": row.direction, "stage": row.stage, "batch": row.batch}
    found |= {"mbytes": row.work.bytes / 1e6, "gflops": row.work.flops / 1e9, "mexps": row.work.exps / 1e6}
    found |= {"floor_us": floor * 1e6, "binds": binding}
    slots = None if once else static_slots(row, device.arch)
    if slots is not None:
        seconds, by = row.work.with_slots(slots).floor(device)
        found |= {"predicted_us": seconds * 1e6, "predicted_binds": by}
    found["measured"] = {name: timed(call, once) for name, call in row.calls()} if run else {}
    if "ours" in found["measured"]:
        found["fraction_of_floor"] = found["floor_us"] / found["measured"]["ours"]["median_us"]
        if "predicted_us" in found:
            found["fraction_of_predicted"] = found["predicted_us"] / found["measured"]["ours"]["median_us"]
    return found


def static_slots(row: Row, arch: str, path: Path = ROOT / "benchmarks/results/static.json") -> float | None:
    """Warp instructions of all of an operation's kernels, from what they compile to; None where that is not known."""
    if not path.exists():
        return None
    found = [
        entry["whole_per_token"]
        for entry in json.loads(path.read_text())["rows"]
        if (entry["op"], entry["direction"], entry["stage"], entry["arch"]) == (row.op, row.direction, row.stage, arch)
    ]
    return sum(found) * row.tokens if found else None


def timed(call: Callable[[], Any], once: bool) -> Times:
    """Median and band of a call in microseconds; on a GPU the second-level cache is flushed between repeats."""
    if torch.cuda.is_available() and not once:
        from triton.testing import do_bench

        low, middle, high = (1e3 * v for v in do_bench(call, warmup=50, rep=200, quantiles=[0.2, 0.5, 0.8]))
        return {"median_us": middle, "low_us": low, "high_us": high}
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"median_us": statistics.median(seconds) * 1e6, "low_us": min(seconds) * 1e6, "high_us": max(seconds) * 1e6}


def write(record: dict[str, Any], stem: Path) -> None:
    """JSON and Markdown under one name."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def report(record: dict[str, Any]) -> str:
    """The rows as Markdown."""
    others = sorted({key for row in record["rows"] for key in row["measured"]} - {"ours"})
    head = ["kernel", "stage", "batch", "direction", "MB", "GFLOP", "M exps", "floor us", "binds", "predicted us"]
    head += ["binds", "measured us", "20-80 %", "of floor", *others]
    machine = "SMOKE TEST at reduced shapes: no figure here means anything" if record["smoke"] else record["gpu"]
    machine = machine or "no GPU: nothing is measured, measured columns stay empty"
    lines = [
        f"# Kernels against their floors on {record['floor_of']}",
        "",
        f"`{record['command']}`, {record['date']}; {machine}; "
        f"torch {record['torch']}, triton {record['triton']}; bf16.",
        "",
        "The floor is the largest of memory, products and special functions that any code needs; the prediction adds "
        "the issue slots of this code as compiled (fmri_scale/kernels/roofline.py, benchmarks/results/static.md) and "
        "is no measurement.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *(" | ".join(cells_of(row, others)) for row in record["rows"]),
    ]
    return "\n".join(lines) + "\n"


def cells_of(row: dict[str, Any], others: list[str]) -> Iterator[str]:
    """Cells of a row, empty where nothing was measured."""
    ours = row["measured"].get("ours")
    yield from ("|" + row["kernel"], row["stage"], str(row["batch"]), row["direction"])
    yield from (f"{row[k]:.1f}" for k in ("mbytes", "gflops", "mexps", "floor_us"))
    yield row["binds"]
    yield f"{row['predicted_us']:.1f}" if "predicted_us" in row else ""
    yield row.get("predicted_binds", "")
    yield f"{ours['median_us']:.1f}" if ours else ""
    yield f"{ours['low_us']:.1f}-{ours['high_us']:.1f}" if ours else ""
    yield f"{row['fraction_of_floor']:.2f}" if ours else ""
    yield from (f"{row['measured'][k]['median_us']:.1f}" if k in row["measured"] else "" for k in others)
    yield "|"


if __name__ == "__main__":
    main()
