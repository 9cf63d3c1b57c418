"""How fast clips come, and what that costs in processor time, beside four other loaders on the same data.

python benchmarks/loader.py [--data DIR] [--rounds 5] [--peers-python PYTHON]

In every round each system runs once, in a process of its own, so that what else the machine does meets all alike; the
medians over rounds are reported. See loader_data.py for the data and loader_child.py for what is counted. The data come
from the page cache, and all of them have come there in one way, by a read from end to end (as copying or verifying a
corpus does): how finely a writer wrote decides how the kernel's pages lie, and moves these figures by up to a fifth.
Writes benchmarks/results/loader_MACHINE.json and .md.

The peers are no dependencies of this project. Install them elsewhere, for example

    python -m venv peers && peers/bin/pip install torch==2.13.0 webdataset mosaicml-streaming==0.13.0 litdata==0.2.76 \
        megatron-energon==7.4.1 && peers/bin/pip install -e .

and name that interpreter; what it cannot import is left out of the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from machine import processor, slug  # beside this file

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
PEERS = {
    "mosaicml-streaming": ("streaming", "mds"),
    "litdata": ("litdata", "litdata"),
    "megatron-energon": ("megatron.energon", "clips"),
}
"Name to module and data."

COMPARED = [
    ("ours", 1, ()),
    ("ours", 2, ()),
    ("webdataset", 1, ()),
    ("webdataset", 2, ()),
    ("webdataset, whole segments", 1, ()),
    *[(peer, workers, ()) for peer in PEERS for workers in (1, 2)],
]
ABOUT_US = [
    ("ours", 1, ("--shuffled",)),
    ("ours", 0, ()),
    ("ours", 1, ("--untouched",)),
    ("ours, no checksums", 1, ()),
]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/tmp/fmri_scale_loader_benchmark"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=120)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    present = {peer for peer, (module, _) in PEERS.items() if _imports(args.peers_python, module)}
    print(f"not installed, left out: {sorted(set(PEERS) - present)}" if set(PEERS) - present else "all peers are there")
    _run(sys.executable, "loader_data.py", str(args.data), "corpus", "clips")
    for peer in present:
        _run(args.peers_python, "loader_data.py", str(args.data), PEERS[peer][1])
    bring_into_cache(args.data)
    cases = [case for case in COMPARED if case[0] not in PEERS or case[0] in present] + ABOUT_US
    found: dict[Any, list[dict[str, float]]] = {case: [] for case in cases}
    loads = [os.getloadavg()[0]]
    for number in range(args.rounds):
        for case in cases:
            system, workers, options = case
            python = args.peers_python if system in PEERS else sys.executable
            command = [system, str(args.data), "--workers", str(workers), "--batches", str(args.batches), *options]
            found[case].append(json.loads(_run(python, "loader_child.py", *command).splitlines()[-1]))
            print(
                f"round {number + 1}: {_name(case)}: {_rate(found[case][-1]):.2f} GB per processor second", flush=True
            )
        loads.append(os.getloadavg()[0])
    record = summary(found) | {"machine": processor(), "date": str(date.today()), "load": loads, "rounds": args.rounds}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"loader_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def bring_into_cache(folder: Path) -> None:
    """Have every file under a folder in the page cache as reading from end to end leaves it, not as writing did."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(2**20):
                pass


def summary(found: dict[Any, list[dict[str, float]]]) -> dict[str, Any]:
    """Return medians per system, and the ratios that matter, each taken within a round before its median is."""
    rows = [
        {
            "system": system,
            "workers": workers,
            "options": " ".join(options),
            "gb_per_processor_s": statistics.median(map(_rate, runs)),
            "all_gb_per_processor_s": list(map(_rate, runs)),
            "gb_per_s": statistics.median(run["bytes"] / run["wall_s"] / 1e9 for run in runs),
            "first_batch_s": statistics.median(run["first_batch_s"] for run in runs),
        }
        for (system, workers, options), runs in found.items()
    ]
    ours = found["ours", 1, ()]
    rounds = range(len(ours))
    peers = [case for case in found if not case[0].startswith("ours")]
    best = [max(_rate(found[case][i]) for case in peers) for i in rounds]
    random_order = [_rate(found["ours", 1, ("--shuffled",)][i]) / _rate(ours[i]) for i in rounds]
    return {
        "rows": rows,
        "times_best_peer": statistics.median(_rate(ours[i]) / best[i] for i in rounds),
        "random_over_sequential": statistics.median(random_order),
    }


def report(record: dict[str, Any]) -> str:
    """Return the record as a table."""
    lines = [
        f"# Loader, {record['machine']}, {record['date']}",
        "",
        "Batches of 4 clips of 20 frames x 272,597 voxels (21.8 MB of codes and 4.4 MB of scale), from the page cache,",
        "where one read from end to end has brought every system's files.",
        "The consumer copies each batch into memory of its own, except where 'untouched'. Processor seconds are of the",
        f"loader's processes and the consumer together. Medians of {record['rounds']} interleaved rounds; load of the",
        f"machine before, between and after rounds: {', '.join(f'{load:.1f}' for load in record['load'])}.",
        "",
        "| system | processes | GB per processor second | GB/s wall | first batch, s |",
        "|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        system = f"{row['system']} ({row['options'].replace('--', '')})" if row["options"] else row["system"]
        rates = f"{row['gb_per_processor_s']:.2f} | {row['gb_per_s']:.2f}"
        lines.append(f"| {system} | {row['workers']} | {rates} | {row['first_batch_s']:.2f} |")
    lines += [
        "",
        f"Ours with one reader over the best peer of its round, per processor second: {record['times_best_peer']:.2f}.",
        f"Random order over sequential, per processor second: {record['random_over_sequential']:.2f}.",
        "Ours verifies every frame and plane that it delivers (xxh3); the peers verify nothing.",
        "",
    ]
    return "\n".join(lines)


def _rate(run: dict[str, float]) -> float:
    return run["bytes"] / run["processor_s"] / 1e9


def _name(case: Any) -> str:
    return f"{case[0]}, {case[1]} processes {' '.join(case[2])}".rstrip()


def _imports(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def _run(python: str, script: str, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(HERE / script), *arguments], capture_output=True, text=True, check=False, env=env, timeout=900
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
