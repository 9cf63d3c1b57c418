"""From an empty folder to the first training step, without a compiler: is it possible, and how long does it take?

python benchmarks/setup.py [--torch-index URL] [--published] [--packages-from TEXT]

Clones this repository's HEAD into an empty folder and runs `bash launch/quickstart.sh` there, as README.md says, until
`metrics.jsonl` has a row: environment, synthetic cohort, shards, first step. PATH leads to links to the programs below
and to nothing else: no compiler, no make, no nvcc. pip's cache is empty. Beside it the slim core alone is installed
(`pip install .`, held to the tested versions) and imported. With `--published`, the two packages that the published
NeuroSTORM has its users build are asked for in the same way, torch being there. What comes over the network takes as
long as the network does: --packages-from says in words where packages came from.
Writes benchmarks/results/setup_MACHINE.json and .md.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from machine import processor, slug  # noqa: E402

PROGRAMS = "bash sh env cat cp cut dirname find git head ls ln mkdir mktemp mv realpath rm sed sha256sum sort tr uname"
COMPILERS = "cc gcc g++ c++ clang nvcc make ninja"
PUBLISHED = ("causal-conv1d==1.5.0.post8", "mamba-ssm==2.2.2")
"What scripts/install_mamba.sh of the published NeuroSTORM checks out and builds."
MARKS = {
    "environment": ".venv/.complete",
    "cohort": "quickstart/cohort/participants.tsv",
    "corpus": "quickstart/corpus/index.parquet",
    "first training step": "quickstart/run/metrics.jsonl",
}
"What is there when a part is done."
SLIM = "import fmri_scale; from fmri_scale.evaluation.features import extract"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-index", metavar="URL", help="FMRI_SCALE_TORCH_INDEX of launch/env.sh")
    parser.add_argument("--published", action="store_true", help="also ask for what the published code has users build")
    parser.add_argument("--packages-from", default="the index that pip is configured with", metavar="TEXT")
    parser.add_argument("--limit-s", type=float, default=1800)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory(prefix="setup-") as folder:
        found = measured(Path(folder), args)
    record = {
        "command": " ".join(["python benchmarks/setup.py", *["--published"] * args.published]),
        "machine": processor(),
        "date": str(date.today()),
        "load": load,
        "packages_from": args.packages_from,
        **found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"setup_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def measured(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of every part, and what could be installed."""
    environment = bare(folder, args.torch_index)
    start = time.perf_counter()
    clone = ["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(folder / "clone")]
    subprocess.run(clone, check=True, env=environment)
    parts = {"clone": time.perf_counter() - start}
    parts |= quickstart(folder / "clone", environment, args.limit_s, start)
    tried = {"fmri_scale[train,dev], by launch/env.sh": {"installed": True, "said": ""}}
    seconds, outcome = slim_core(folder, environment, args.torch_index)
    tried["fmri_scale, the slim core"] = outcome
    python = folder / "clone" / ".venv" / "bin" / "python"
    for package in PUBLISHED if args.published else ():
        place = ["--target", folder / "published", "--no-deps", "--no-build-isolation", package]
        tried[package] = installed([python, "-m", "pip", "install", "--quiet", *place], environment)
    said = subprocess.run(["du", "-sk", folder / "clone" / ".venv"], check=True, capture_output=True, text=True).stdout
    size = int(said.split()[0]) * 1024
    parts = {name: round(s, 1) for name, s in parts.items()}
    return {"seconds": parts, "environment_gb": round(size / 1e9, 2), "slim_s": round(seconds, 1), "tried": tried}


def bare(folder: Path, torch_index: str | None) -> dict[str, str]:
    """Return an environment in which few programs are found, none of which is a compiler."""
    links = folder / "bin"
    links.mkdir()
    for name in PROGRAMS.split():
        place = shutil.which(name)
        assert place, f"{name} is not installed here"
        (links / name).symlink_to(place)
    (links / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    assert not [name for name in COMPILERS.split() if shutil.which(name, path=str(links))]
    kept = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.endswith(("_CERT", "_BUNDLE", "_PROXY"))}
    given = {"PATH": str(links), "HOME": str(folder), "PIP_CACHE_DIR": str(folder / "pip"), "LANG": "C.UTF-8"}
    return kept | given | ({"FMRI_SCALE_TORCH_INDEX": torch_index} if torch_index else {})


def quickstart(clone: Path, environment: dict[str, str], limit_s: float, start: float) -> dict[str, float]:
    """Run the quickstart until its first training step; return the seconds since `start` at which parts were done."""
    with (clone.parent / "quickstart.log").open("w+") as log:
        process = subprocess.Popen(
            ["bash", "launch/quickstart.sh"], cwd=clone, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        done: dict[str, float] = {}
        while len(done) < len(MARKS) and time.perf_counter() - start < limit_s:
            over = process.poll() is not None
            for name, mark in MARKS.items():
                if name not in done and (clone / mark).exists() and (clone / mark).stat().st_size:
                    done[name] = time.perf_counter() - start
            if over:
                break
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
        log.seek(0)
        if len(done) < len(MARKS):
            raise SystemExit(f"no training step; the quickstart said:\n{log.read()[-4000:]}")
    return done


def slim_core(folder: Path, environment: dict[str, str], torch_index: str | None) -> tuple[float, dict[str, Any]]:
    """Install the slim core into an environment of its own; return seconds and whether it can be used."""
    start = time.perf_counter()
    python = folder / "slim" / "bin" / "python"
    subprocess.run([folder / "bin" / "python3", "-m", "venv", folder / "slim"], check=True, env=environment)
    pip = [python, "-m", "pip", "install", "--quiet", "-c", folder / "clone" / "launch" / "constraints.txt"]
    if torch_index:
        installed([*pip, "--index-url", torch_index, "torch"], environment)
    outcome = installed([*pip, folder / "clone"], environment)
    used = subprocess.run([python, "-c", SLIM], env=environment, cwd=folder, check=False)
    return time.perf_counter() - start, outcome | {"installed": outcome["installed"] and used.returncode == 0}


def installed(command: list[Any], environment: dict[str, str]) -> dict[str, Any]:
    """Run pip; return whether it could, and else the error of what it ran."""
    pip = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in pip.stderr.splitlines() if re.match(r"\s*\w*Error: ", line)]
    return {"installed": pip.returncode == 0, "said": lines[-1] if pip.returncode and lines else ""}


def report(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    lines = [
        f"# From an empty folder to the first training step, {record['machine']}, {record['date']}",
        "",
        f"`{record['command']}`, load {record['load']} before; no compiler; pip's cache empty; packages from "
        f"{record['packages_from']}; the environment takes {record['environment_gb']} GB.",
        "",
        "| done | s since the start |",
        "|---|---|",
        *(f"| {name} | {seconds:.0f} |" for name, seconds in record["seconds"].items()),
        "",
        f"The slim core in an environment of its own, installed and imported: {record['slim_s']:.0f} s.",
        "",
        "| without a compiler | can be installed | it said |",
        "|---|---|---|",
    ]
    for name, outcome in record["tried"].items():
        said = f"`{outcome['said']}`" if outcome["said"] else ""
        lines.append(f"| {name} | {'yes' if outcome['installed'] else 'no'} | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
