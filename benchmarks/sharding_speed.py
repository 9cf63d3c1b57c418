"""What a corpus costs: seconds per run and frames per second and core, beside Python's gzip reading the same file.

python benchmarks/sharding_speed.py [--data DIR] [--rounds 3] [--frames 300] [--long 1200]

In every round each case runs once, in a process of its own on one core: `gzip.open(file).read` a MiB at a time, then
`build_corpus` of RUNS links to that file, planning, tables and all, in that one process, from an open interpreter.
Seconds are per run, of the wall and of the processor; medians over rounds, and of the ratio within a round. Memory is
the process' peak, of which what importing takes is told apart. The data are made up, see sharding_data.py.
Writes benchmarks/results/sharding_speed_MACHINE.json and .md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from machine import processor, slug  # noqa: E402
from sharding_data import make_run  # noqa: E402

KINDS = {"2mm": "on the lattice (2 mm, TR 0.8 s)", "2.4mm": "resampled in space and time (2.4 mm, TR 2.0 s)"}
GOALS = {"2mm": 1.5, "2.4mm": 2.5}
RUNS = 3


def main() -> None:
    """Measure, print and write; with `--child`, be one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/tmp/fmri_scale_sharding_benchmark"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--long", type=int, default=1200, help="frames of the run by which memory is compared")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "FILE", "RUNS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        what, file, runs = args.child
        print(json.dumps(CASES[what](Path(file), int(runs), args.data / "work")))
        return
    record = measured(args)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"sharding_speed_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def gzip_case(file: Path, runs: int, work: Path) -> dict[str, Any]:
    """Inflate a file, and do nothing with what comes out."""
    import gzip

    wall, processor = time.perf_counter(), time.process_time()
    with gzip.open(file) as stream:
        while stream.read(2**20):
            pass
    return {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor}


def build_case(file: Path, runs: int, work: Path) -> dict[str, Any]:
    """Build a corpus of several runs, all links to one file."""
    from sharding import finish  # noqa: F401 - all imports before the clock starts
    from sharding.build import build_corpus
    from sharding.discover import find_runs
    from sharding.plan import BuildSettings

    imported = peak_mb()
    shutil.rmtree(work, ignore_errors=True)
    (work / "in").mkdir(parents=True)
    for number in range(runs):
        (work / "in" / f"sub-{number}_task-rest_space-MNI152NLin6Asym_bold.nii.gz").symlink_to(file)
    wall, processor = time.perf_counter(), time.process_time()
    sources, left_out = find_runs([work / "in"], dataset="d")
    made = build_corpus(sources, left_out, work / "corpus", BuildSettings())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    totals = made.corpus.meta["totals"]
    shutil.rmtree(work)
    return {
        "wall_s": wall / runs,
        "processor_s": processor / runs,
        "frames": totals["frames"] / runs,
        "bytes": totals["bytes"] / runs,
        "failed": len(made.failed),
        "peak_mb": peak_mb(),
        "imported_mb": imported,
    }


CASES = {"gzip": gzip_case, "build": build_case}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was measured."""
    files = {kind: make_run(args.data, kind, args.frames) for kind in KINDS}
    long = make_run(args.data, "2mm", args.long, level=1)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    loads = []
    for number in range(args.rounds):
        for kind, file in files.items():
            subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)  # all meet it in the page cache
            loads.append(os.getloadavg()[0])
            found[kind].append({what: child(args.data, what, file, RUNS) for what in CASES})
            last = found[kind][-1]
            ratio = last["build"]["processor_s"] / last["gzip"]["processor_s"]
            print(f"round {number + 1}: {kind}: {ratio:.2f} times gzip's processor time", flush=True)
    memory = {
        str(args.frames): child(args.data, "build", files["2mm"], 1),
        str(args.long): child(args.data, "build", long, 1),
    }
    return {
        "machine": processor(),
        "date": str(date.today()),
        "load": loads,
        "rounds": args.rounds,
        "source_frames": args.frames,
        "file_mb": {kind: file.stat().st_size / 1e6 for kind, file in files.items()},
        "rows": {kind: summary(rounds) for kind, rounds in found.items()},
        "memory": {
            frames: {name: case[name] for name in ("peak_mb", "imported_mb")} for frames, case in memory.items()
        },
    }


def child(data: Path, what: str, file: Path, runs: int) -> dict[str, Any]:
    """Run a case in a process of its own, on one core where that can be asked for."""
    command = [sys.executable, __file__, "--data", str(data), "--child", what, str(file), str(runs)]
    if shutil.which("taskset"):
        command = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(said.splitlines()[-1])


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians of a case over rounds."""

    def median(what: str, name: str) -> float:
        return statistics.median(case[what][name] for case in rounds)

    def ratios(name: str) -> list[float]:
        return [case["build"][name] / case["gzip"][name] for case in rounds]

    assert not any(case["build"]["failed"] for case in rounds)
    return {
        "gzip_s": median("gzip", "wall_s"),
        "gzip_processor_s": median("gzip", "processor_s"),
        "build_s": median("build", "wall_s"),
        "build_processor_s": median("build", "processor_s"),
        "times_gzip": statistics.median(ratios("wall_s")),
        "times_gzip_processor": statistics.median(ratios("processor_s")),
        "all_times_gzip": ratios("wall_s"),
        "all_times_gzip_processor": ratios("processor_s"),
        "stored_frames": median("build", "frames"),
        "frames_per_s_core": median("build", "frames") / median("build", "processor_s"),
        "stored_mb": median("build", "bytes") / 1e6,
    }


def report(record: dict[str, Any]) -> str:
    """Return the record in words."""
    lines = [
        f"# Sharding, {record['machine']}, {record['date']}",
        "",
        f"A run of {record['source_frames']} volumes, float32, gzip level 6, made up after HCP's (0 outside the brain, "
        "noise in the mantissas).",
        "gzip: Python's own, inflating the file and no more. Build: `build_corpus`, whole, in one process on one core;",
        f"seconds per run of {RUNS}. Medians of {record['rounds']} rounds; load of the machine before each case: "
        f"{min(record['load']):.1f} to {max(record['load']):.1f}.",
        "Where others load the machine, processor seconds say more than the wall's.",
        "",
        "| | file, MB | gzip, s | build, s | times gzip | in processor time | goal | frames stored | frames/s/core |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, row in record["rows"].items():
        lines.append(
            f"| {KINDS[kind]} | {record['file_mb'][kind]:.0f} | {row['gzip_s']:.2f} | {row['build_s']:.2f} | "
            f"{row['times_gzip']:.2f} | {row['times_gzip_processor']:.2f} | {GOALS[kind]} | "
            f"{row['stored_frames']:.0f} | {row['frames_per_s_core']:.0f} |"
        )
    lines += ["", "| volumes of the 2 mm run | peak memory, MB | of which imports, MB |", "|---|---|---|"]
    for frames, row in record["memory"].items():
        lines.append(f"| {frames} | {row['peak_mb']:.0f} | {row['imported_mb']:.0f} |")
    return "\n".join([*lines, ""])


def peak_mb() -> float:
    """Return the most memory this process ever had resident, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage would count the parent before exec
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
