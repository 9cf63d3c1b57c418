"""One run made ready for training: a whole build of ours beside the published scripts; seconds, memory, bytes.

python benchmarks/sharding_published.py --neurostorm DIR [--swift DIR] [--kinds 2mm 2.4mm] [--frames 300] [--rounds 3]

Clones by path: CUHK-AIM-Group/NeuroSTORM (`datasets/preprocessing_volume.py`: int8 with a scale a run, one data.pt) and
Transconnectome/SwiFT (`read_data` of its preprocessing.py: fp16, a file a volume, no resampling; needs monai 1.2).
Each is given the same made-up file (sharding_data.py) and is started as a user starts it, imports included, on one
core; in every round each runs once. Ours also indexes, checksums and measures quality. The float32 volumes that the
published scripts hold whole set their memory.
Writes benchmarks/results/sharding_published_MACHINE.json and .md.
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

from clones import revision  # noqa: E402
from machine import processor, slug  # noqa: E402
from sharding_data import make_run  # noqa: E402

KINDS = {"2mm": "on the lattice (2 mm, TR 0.8 s)", "2.4mm": "resampled (2.4 mm, TR 2.0 s)"}
NAMES = {"ours": "fmri_scale", "neurostorm": "published NeuroSTORM", "swift": "published SwiFT"}
MEASURES = ("wall_s", "processor_s", "peak_gb", "stored_mb")
OURS = "import sys; from sharding.cli import main; sys.exit(main(sys.argv[1:]))"
SWIFT = "import sys; from preprocessing import read_data; read_data(*sys.argv[1:5], 1, scaling_method='z-norm')"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurostorm", type=Path, metavar="DIR")
    parser.add_argument("--swift", type=Path, metavar="DIR")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["2mm"], help="2.4mm: much memory for the peer")
    parser.add_argument("--data", type=Path, default=Path("/tmp/fmri_scale_sharding_benchmark"))
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    clones = {name: getattr(args, name).resolve() for name in ("neurostorm", "swift") if getattr(args, name)}
    record = {
        "command": " ".join(["python benchmarks/sharding_published.py", *(f"--{name} DIR" for name in clones)]),
        "machine": processor(),
        "date": str(date.today()),
        "load": round(os.getloadavg()[0], 2),
        "clones": {name: revision(folder) for name, folder in clones.items()},
        "source_frames": args.frames,
        "rounds": args.rounds,
        "rows": {kind: measured(kind, clones, args) for kind in args.kinds},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"sharding_published_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def measured(kind: str, clones: dict[str, Path], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return medians over rounds of everyone who can take this kind of run."""
    file = make_run(args.data, kind, args.frames)
    who = ["ours", *(name for name in clones if name == "neurostorm" or kind == "2mm")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in who}
    for _ in range(args.rounds):
        subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)  # all meet it in the page cache
        for name in who:
            found[name].append(one(name, clones.get(name), file, args.data / "published"))
            print(f"{kind} {name}: {found[name][-1]['processor_s']:.1f} processor seconds", file=sys.stderr, flush=True)
    return {
        name: {key: statistics.median(round(r[key], 3) for r in rounds) for key in MEASURES} | {"rounds": rounds}
        for name, rounds in found.items()
    }


def one(name: str, clone: Path | None, file: Path, work: Path) -> dict[str, float]:
    """Make one file ready, once, from an empty folder."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "in").mkdir(parents=True)
    (work / "in" / file.name).symlink_to(file)
    command, path = command_of(name, clone, file, work)
    command = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *map(str, command)]
    path = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - start
    stored = sum(path.stat().st_size for path in (work / "out").rglob("*") if path.is_file())
    if process.returncode or stored < 2**20:
        raise SystemExit(f"{name} wrote {stored} bytes of {file} and ended with {process.returncode}")
    shutil.rmtree(work)
    used_s = used.ru_utime + used.ru_stime
    return {"wall_s": wall_s, "processor_s": used_s, "peak_gb": used.ru_maxrss * 1024 / 1e9, "stored_mb": stored / 1e6}


def command_of(name: str, clone: Path | None, file: Path, work: Path) -> tuple[list[Any], Path]:
    """Return what to run and the folder its modules lie in."""
    source, target = work / "in", work / "out"
    if name == "ours":
        return [sys.executable, "-c", OURS, "build", source, "--out", target, "--workers", 1], ROOT
    assert clone is not None
    if name == "neurostorm":
        script = clone / "datasets" / "preprocessing_volume.py"
        options = ["--dataset_name", "hcpya", "--load_root", source, "--save_root", target]
        return [sys.executable, script, *options], clone
    folder = clone / "project" / "module" / "utils" / "data_preprocess_and_load"
    return [sys.executable, "-c", SWIFT, file.name, source, target, "run"], folder


def report(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    clones = ", ".join(f"{name} {commit}" for name, commit in record["clones"].items())
    lines = [
        f"# A run made ready for training, beside the published scripts, {record['machine']}, {record['date']}",
        "",
        f"`{record['command']}`; clones: {clones}. A made-up run of {record['source_frames']} volumes after HCP's, one "
        f"core, imports included; medians of {record['rounds']} rounds, load {record['load']} before.",
        "",
        "| run | | wall s | processor s | peak resident GB | stored MB |",
        "|---|---|---|---|---|---|",
    ]
    for kind, rows in record["rows"].items():
        for name, row in rows.items():
            figures = " | ".join(f"{row[key]:.2f}" for key in MEASURES)
            lines.append(f"| {KINDS[kind]} | {NAMES[name]} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
