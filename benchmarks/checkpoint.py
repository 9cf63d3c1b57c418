"""What a checkpoint costs a run, and what writing it in the background could save at most.

python benchmarks/checkpoint.py

A run of the product trains a model of few tokens and many weights (61 M parameters), on one rank, and saves after every
step: `checkpoint_s` of metrics.jsonl is how long training stood still. An asynchronous writer would still have to copy
the state first (`copy_s`, measured on tensors of the same size) and would then share processor and disk with training;
so it can save no more than the difference. The second table sets the measured rate against the presets' checkpoint
sizes and the step times that `fmri-scale estimate` predicts for H200s, at the default `checkpoint.every_steps`.
Writes checkpoint_MACHINE.json and .md under benchmarks/results/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from loader_data import write_corpus  # beside this file
from machine import processor, slug

from fmri_scale.config import Config, load_config
from fmri_scale.training.estimate import checkpoint_bytes, devices, estimate

ROOT = Path(__file__).resolve().parents[1]
WIDE = [
    "model.image_size=[48,48,48]",
    "model.patch_size=[12,12,12,1]",
    "model.num_frames=4",
    "model.embed_dim=512",
    "model.depths=[2,2]",
    "optim.global_batch=1",
    "log.wandb=off",
]
JOBS = {"base": (1, 1, 0), "large": (1, 8, 1), "xl": (8, 8, 1), "xxl": (8, 8, 3)}
"Of each preset: machines, GPUs of each, ZeRO stage."


def main() -> None:
    """Measure, predict, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    record = {
        "command": " ".join(["python benchmarks/checkpoint.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": processor(),
        "load_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        **measured(args.checkpoints),
    }
    record["presets"] = [share(name, record["bytes_per_s"], record["copy_bytes_per_s"]) for name in JOBS]
    stem = args.out / f"checkpoint_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def measured(number: int) -> dict[str, Any]:
    """Return the seconds of checkpoints of a run, and of copying as many bytes."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        run, corpus = Path(folder) / "run", Path(folder) / "corpus"
        corpus.mkdir()
        write_corpus(corpus, 1)
        keys = [f"run_dir={run}", f"data.corpus={corpus}", f"optim.steps={number + 1}", "checkpoint.every_steps=1"]
        command = [sys.executable, "-m", "fmri_scale.train", *WIDE, *keys, "log.every_steps=1"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        newest = max((run / "checkpoints").glob("step_*"))
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    seconds = sorted(row["checkpoint_s"] for row in rows[1:])  # a row tells of the checkpoint before it
    copies = copy_seconds(size)
    return {
        "bytes": size,
        "save_s": {"median": statistics.median(seconds), "low": seconds[0], "high": seconds[-1]},
        "copy_s": copies,
        "bytes_per_s": size / statistics.median(seconds),
        "copy_bytes_per_s": size / copies,
    }


def copy_seconds(size: int) -> float:
    """Return the median seconds of copying a state into memory that is there already."""
    state, copy = torch.ones(size // 4), torch.ones(size // 4)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        copy.copy_(state)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def share(name: str, bytes_per_s: float, copy_bytes_per_s: float) -> dict[str, Any]:
    """Return what the checkpoints of a preset's job cost, in seconds and as a share of the run."""
    nodes, gpus, stage = JOBS[name]
    clips = 8 * nodes * gpus
    keys = [f"engine.zero_stage={stage}", "engine.dtype=bf16", f"optim.global_batch={clips}", "optim.micro_batch=8"]
    config: Config = load_config([ROOT / f"configs/model/{name}.yaml"], keys)
    step_s = estimate(config, nodes, gpus, devices.GPUS["h200"]).step_s
    size = checkpoint_bytes(config)
    part = size / (nodes * gpus if stage else 1)  # every rank writes its part; with ZeRO 0 rank 0 writes all
    interval_s = config.checkpoint.every_steps * step_s
    save_s, copy_s = part / bytes_per_s, part / copy_bytes_per_s
    told = {"preset": name, "gpus": nodes * gpus, "zero_stage": stage, "bytes": size, "interval_s": interval_s}
    return {**told, "save_s": save_s, "share": save_s / (interval_s + save_s), "saved_at_most": save_s - copy_s}


def report(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    save = record["save_s"]
    lines = [
        "# What a checkpoint costs",
        "",
        f"{record['machine']}, load {record['load_before']} before; torch {record['torch']}; {record['date']}; "
        f"`{record['command']}`.",
        "",
        f"Measured, one rank, {record['bytes'] / 1e9:.2f} GB: training stands still for {save['median']:.2f} s "
        f"({save['low']:.2f} to {save['high']:.2f}), {record['bytes_per_s'] / 1e6:,.0f} MB/s with writing, flushing, "
        f"reading back and SHA-256; copying the state in memory takes {record['copy_s']:.2f} s.",
        "",
        "PREDICTION, from that rate and the step times that `fmri-scale estimate` predicts for H200s (8 clips a rank, "
        "bf16), a checkpoint every 500 steps (the default):",
        "",
        "| preset | GPUs | ZeRO | checkpoint GB | between two s | saving s | share of the run | an asynchronous one "
        "saves at most s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["presets"]:
        lines.append(
            f"| {row['preset']} | {row['gpus']} | {row['zero_stage']} | {row['bytes'] / 1e9:.2f} | "
            f"{row['interval_s']:.0f} | {row['save_s']:.2f} | {row['share']:.2%} | {row['saved_at_most']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
