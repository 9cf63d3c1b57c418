"""How fast training is: frames per second and rank, MFU, peak memory, waiting for data, over a grid of settings.

python benchmarks/throughput.py --preset base --batch 8 32 64 --loader real synthetic --corpus CORPUS
deepspeed --hostfile hosts.txt benchmarks/throughput.py --preset xxl --batch 8 --zero 1 3 --work SHARED/throughput
torchrun --nproc-per-node 8 benchmarks/throughput.py --preset base --compile off inductor
python benchmarks/throughput.py --smoke --out FOLDER

Every point of the grid is a run of the product: each rank starts `fmri_scale/train.py` with its own place (same ranks,
another port), and what that run wrote to metrics.jsonl is read. A point that fails is kept with its reason. The first
`--warmup` steps are left out; figures are the median and the 20 to 80 % range of the others. A step's time is of all
ranks (it ends with an exchange); peak memory is rank 0's, warm-up included. MFU stays empty where the peak is not known
(CPUs). The loader `real` reads `--corpus`; `synthetic` reads a corpus of random codes of the real mask in --work, a few
segments that stay in the page cache: everything of reading but the disk. --work must be seen by all nodes.
Writes throughput_MACHINE_N-ranks.json, .md and .svg under benchmarks/results/.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import torch
from loader_data import write_corpus  # beside this file
from machine import processor, slug

from fmri_scale.log import counted
from fmri_scale.training.launch import Launch, discover

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ["--preset=tiny", "--batch", "1", "2", "--steps=2", "--warmup=1", "--segments=1", "--set=model.num_frames=2"]
"What --smoke stands for; what else is given wins."
SPREAD = ("step_s", "frames_per_s_per_rank", "mfu", "data_wait_fraction")
"Figures of a row of metrics.jsonl of which median and range are kept."


@dataclass(frozen=True)
class Point:
    """A point of the grid; `batch` is the clips of a forward pass of a rank, `global_batch` 0 all that ranks make."""

    preset: str
    batch: int
    zero_stage: int
    checkpointing: bool
    compile: str
    backend: str
    loader: str
    global_batch: int

    def overrides(self) -> list[str]:
        """Return the point as keys of the configuration."""
        return [
            f"optim.micro_batch={self.batch}",
            f"engine.zero_stage={self.zero_stage}",
            f"model.checkpoint_blocks={str(self.checkpointing).lower()}",
            f"engine.compile={self.compile}",
            f"model.backend={self.backend}",
        ]


def main() -> None:
    """Run the grid; rank 0 prints and writes."""
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child in flight is ended too
    place = discover()
    place.export()
    load_before = os.getloadavg()[0]
    corpora = {"real": args.corpus, "synthetic": synthetic(args.work, args.segments, place.rank)}
    rows = []
    for number, point in enumerate(grid(args)):
        rows.append(run_point(point, number, place, corpora[point.loader], args))
        if place.rank == 0:
            told = rows[-1].get("failed") or f"{rows[-1]['frames_per_s_per_rank']['median']:.2f} frames/s per rank"
            print(f"{point}: {told}", flush=True)
    if place.rank == 0:
        record = environment(place, args, load_before) | {"rows": rows}
        stem = args.out / f"throughput_{slug(record['machine'])}_{place.world_size}-ranks"
        write(record, stem)
        print(report(record))


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["base"], help="names in configs/model/, or YAML files")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="clips of a forward pass of a rank")
    parser.add_argument("--zero", type=int, nargs="+", default=[1], choices=range(4))
    parser.add_argument("--checkpointing", nargs="+", default=["off"], choices=["off", "on"])
    parser.add_argument("--compile", nargs="+", default=["off"], choices=["off", "inductor"])
    parser.add_argument("--backend", nargs="+", default=["auto"], choices=["auto", "torch", "triton", "mamba_ssm"])
    parser.add_argument("--loader", nargs="+", default=["synthetic"], choices=["real", "synthetic"])
    parser.add_argument("--corpus", help="corpus of the loader `real`")
    parser.add_argument("--segments", type=int, default=8, help="segments of 128 frames of the synthetic corpus")
    parser.add_argument("--global-batch", type=int, nargs="+", default=[0], help="0: as --accumulation has it")
    parser.add_argument("--accumulation", type=int, default=1, help="forward passes of a step and rank")
    parser.add_argument("--steps", type=int, default=30, help="measured steps")
    parser.add_argument("--warmup", type=int, default=10, help="steps before them")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more keys, for all points")
    parser.add_argument("--limit-s", type=float, default=1800, help="seconds after which a point has failed")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/throughput", help="folder that all nodes see")
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results; required with --smoke)")
    parser.add_argument("--smoke", action="store_true", help="two points of two steps, to know that this script works")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        if args.out is None:
            parser.error("--smoke: its figures mean nothing; say with --out where to write them")
        args = parser.parse_args([*SMOKE, *sys.argv[1:]])
    if "real" in args.loader and not args.corpus:
        parser.error("--loader real: name the corpus with --corpus")
    args.out, args.work = args.out or ROOT / "benchmarks/results", args.work.resolve()
    return args


def grid(args: argparse.Namespace) -> list[Point]:
    """Return all combinations."""
    axes = (args.preset, args.batch, args.zero, [c == "on" for c in args.checkpointing], args.compile, args.backend)
    return [Point(*values) for values in itertools.product(*axes, args.loader, args.global_batch)]


def synthetic(work: Path, segments: int, rank: int) -> Path:
    """Return the folder of the synthetic corpus, made by rank 0 where it is not there; the others wait for it."""
    corpus = work / f"synthetic_{segments}"
    if rank == 0 and not corpus.exists():
        part = corpus.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_corpus(part, segments)
        part.rename(corpus)
    end = time.monotonic() + 600
    while not corpus.exists():
        if time.monotonic() > end:
            raise SystemExit(f"{corpus}: rank 0 has not made it in 600 s; is --work on a file system of all nodes?")
        time.sleep(0.5)
    return corpus


def run_point(point: Point, number: int, place: Launch, corpus: Path | str, args: argparse.Namespace) -> dict[str, Any]:
    """Train at a point of the grid; return its figures, or why there are none (rank 0 tells)."""
    run_dir = args.work / f"point_{number:03d}"
    if place.rank == 0:  # no rank's training begins before rank 0's, which starts after this
        shutil.rmtree(run_dir, ignore_errors=True)
    global_batch = point.global_batch or point.batch * args.accumulation * place.world_size
    preset = Path(point.preset) if point.preset.endswith(".yaml") else ROOT / f"configs/model/{point.preset}.yaml"
    settings = [
        f"run_dir={run_dir}",
        f"data.corpus={corpus}",
        f"optim.global_batch={global_batch}",
        f"optim.steps={args.warmup + args.steps}",
        f"engine.dtype={'bf16' if torch.cuda.is_available() else 'fp32'}",
        f"engine.timeout_s={args.limit_s}",
        *("checkpoint.every_steps=0", "guard.hash_every=0", "log.every_steps=1", "log.wandb=off"),
        *point.overrides(),
        *args.set,
    ]
    command = [sys.executable, str(ROOT / "fmri_scale/train.py"), str(preset), *settings]
    row: dict[str, Any] = asdict(point) | {"ranks": place.world_size, "global_batch": global_batch}
    row["failed"] = train(command, number, place, args)
    try:
        if place.rank == 0 and not row["failed"]:
            lines = (run_dir / "metrics.jsonl").read_text().splitlines()
            row |= figures([json.loads(line) for line in lines], args.warmup)
    finally:
        if place.rank == 0:
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return row


def train(command: list[str], number: int, place: Launch, args: argparse.Namespace) -> str:
    """Run this rank's part of a training; return why it failed, or nothing."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC_")}
    if place.port:  # the launcher may listen at its own port, and the last point's may not be free yet
        env["MASTER_PORT"] = str(20000 + (place.port + 1 + number) % 20000)
    output = args.work / "output" / f"point_{number:03d}_rank_{place.rank}.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as file:
        child = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = child.wait(args.limit_s)
        except subprocess.TimeoutExpired:
            return f"not done after {args.limit_s:.0f} s"
        finally:
            end(child)
    if code == 0:
        return ""
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("train: ")] or lines or ["no output"]
    return f"exit code {code}: {told[-1].strip()}"


def end(child: subprocess.Popen) -> None:
    """End a process that still runs: it may save first, for ten seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def figures(rows: list[dict[str, Any]], warmup: int) -> dict[str, Any]:
    """Return the figures of the rows after the warm-up; None where a row has none (no MFU on CPUs)."""
    warm = [row for row in rows if row["step"] > warmup]
    found: dict[str, Any] = {"steps": len(warm), "skipped_steps": warm[-1]["skipped_steps"]}
    for name in SPREAD:
        values = sorted(row[name] for row in warm if row[name] is not None)
        cut = len(values) // 5
        found[name] = values and {"median": statistics.median(values), "low": values[cut], "high": values[-1 - cut]}
        found[name] = found[name] or None
    found["peak_memory_gb"] = max(row["peak_memory_gb"] for row in rows)
    return found


def environment(place: Launch, args: argparse.Namespace, load: float) -> dict[str, Any]:
    """Return where, when and with what this was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    local = next((int(os.environ[k]) for k in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if k in os.environ), None)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(["benchmarks/throughput.py", *(a for a in sys.argv[1:] if "local_rank" not in a)]),
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "machine": processor() if gpu is None else gpu,
        "gpu": gpu,
        "ranks": place.world_size,
        "ranks_per_node": local if place.world_size > 1 else 1,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load_before": round(load, 2),
        "torch": torch.__version__,
        "warmup": args.warmup,
        "set": args.set,
        "smoke": args.smoke,
    }


def write(record: dict[str, Any], stem: Path) -> None:
    """Write the record, its table and, where a point worked, its plot."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    if any(not row["failed"] for row in record["rows"]):
        plot(record, stem.with_suffix(".svg"))


def label(row: dict[str, Any]) -> str:
    """Return a point in a few words."""
    words = [row["preset"], f"batch {row['batch']}", f"ZeRO {row['zero_stage']}", row["loader"], row["backend"]]
    words += ["recomputed"] * row["checkpointing"] + [row["compile"]] * (row["compile"] != "off")
    return ", ".join(words)


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw frames per second and rank of the points that worked, with their range."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "throughput"  # the same figures give the same file
    from matplotlib import pyplot

    rows = [row for row in record["rows"] if not row["failed"]]
    rates = [row["frames_per_s_per_rank"] for row in rows]
    middle = [rate["median"] for rate in rates]
    spread = [[m - r["low"] for m, r in zip(middle, rates, strict=True)], [r["high"] - r["median"] for r in rates]]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes.barh([label(row) for row in rows], middle, xerr=spread, color="#4477aa")
    axes.invert_yaxis()
    axes.set_xlabel("frames per second and rank, median and 20 to 80 %")
    axes.set_title(f"{record['machine']}, {counted(record['ranks'], 'rank')}", fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def report(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    head = ["preset", "batch", "global batch", "ZeRO", "recomputed", "compile", "backend", "loader", "step s"]
    head += ["20-80 %", "frames/s per rank", "20-80 %", "MFU", "data wait", "peak GB"]
    lines = ["# Throughput of training", ""]
    lines += ["SMOKE TEST: no figure here means anything.", ""] if record["smoke"] else []
    lines += [
        f"{record['machine']}, {counted(record['ranks'], 'rank')}, threads {record['threads'] or 'not set'}, load "
        f"{record['load_before']} before; torch {record['torch']}; {record['date']}, commit {record['commit']}; "
        f"`{record['command']}`; {counted(record['warmup'], 'step')} of warm-up left out. MFU is empty where the "
        "hardware's peak is not known. `synthetic` is random codes in the page cache, read as any corpus is.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in record["rows"]]
    failed = [f"- {label(row)}: {row['failed']}" for row in record["rows"] if row["failed"]]
    return "\n".join(lines + (["", "Failed:", "", *failed] if failed else [])) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row's cells; figures of a point that failed stay empty."""
    names = ("preset", "batch", "global_batch", "zero_stage", "checkpointing", "compile", "backend", "loader")
    told = [str(row[name]) for name in names]
    told[4] = "yes" if row["checkpointing"] else "no"
    if row["failed"]:
        return [*told, "failed", *[""] * 6]
    for name, form in (("step_s", ".4f"), ("frames_per_s_per_rank", ".2f")):
        told += [format(row[name]["median"], form), f"{row[name]['low']:{form}}-{row[name]['high']:{form}}"]
    told += [f"{row['mfu']['median']:.3f}" if row["mfu"] else "", f"{row['data_wait_fraction']['median']:.2%}"]
    return [*told, f"{row['peak_memory_gb']:.2f}"]


if __name__ == "__main__":
    main()
