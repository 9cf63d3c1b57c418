"""A training step on this CPU beside the published NeuroSTORM and SwiFT: seconds, processor seconds, peak memory.

python benchmarks/step_published.py --neurostorm DIR --mamba DIR [--swift DIR] [--frames 20] [--threads 1] [--steps 3]

Clones by path: CUHK-AIM-Group/NeuroSTORM, state-spaces/mamba, Transconnectome/SwiFT; they need monai and einops. One
clip, the base model, float32, AdamW. Like beside like:

- masked autoencoder: ours from int8 codes, NeuroSTORM's from a float volume with half of the windows hidden. Its scan
  has no CPU form but `selective_scan_ref` of mamba, which is what it gets here; on a GPU it would have its CUDA scan.
- encoder alone, from a float volume, gradients of the latent map's mean square: ours, and SwiFT's attention.

Every case is a process of its own, ours before and after the published one; every process takes one step to warm up
and then `--steps` steps, of which medians are told. NeuroSTORM's takes minutes: its first step is the one told unless
`--neurostorm-steps` asks for more.
Writes benchmarks/results/step_published_MACHINE.json and .md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clones import revision  # beside this file
from machine import slug
from published import published_model, published_swift
from step_cpu import ball, codes_in, environment

from fmri_scale.config import MaskConfig, ModelConfig
from fmri_scale.kernels.memory import reuse_freed_memory
from fmri_scale.models import Backbone, MaskedAutoencoder, draw_mask, init_weights, parameter_groups
from fmri_scale.training.throughput import peak_memory_gb

HERE = Path(__file__).resolve().parent
Loss = Callable[[], torch.Tensor]
PHASES = ("forward_s", "backward_s", "optimizer_s")
NAMES = {
    "mae": "fmri_scale",
    "neurostorm": "published NeuroSTORM, mamba's reference scan",
    "encoder": "fmri_scale",
    "swift": "published SwiFT",
}
PAIRS = {"encoder alone": ("encoder", "swift"), "masked autoencoder": ("mae", "neurostorm")}


def main() -> None:
    """Measure, print and write; with `--case`, be one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurostorm", type=Path, metavar="DIR")
    parser.add_argument("--mamba", type=Path, metavar="DIR", help="whose reference scan NeuroSTORM gets")
    parser.add_argument("--swift", type=Path, metavar="DIR")
    parser.add_argument("--frames", type=int, default=20, help="of the clip (default: the published 20)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch (default 1: least disturbed by others)"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps after the first; the median is told")
    parser.add_argument("--neurostorm-steps", type=int, default=0, help="the same of NeuroSTORM")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--case", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(one_case(args)))
        return
    if args.neurostorm and not args.mamba:
        parser.error("--neurostorm: its blocks need --mamba DIR, a clone of https://github.com/state-spaces/mamba")
    clones = {name: getattr(args, name) for name in ("neurostorm", "mamba", "swift") if getattr(args, name)}
    record = environment(args.threads, os.getloadavg()[0])
    record["command"] = " ".join(["python benchmarks/step_published.py", *(f"--{name} DIR" for name in clones)])
    record["command"] += f" --frames {args.frames}"
    record["frames"] = args.frames
    record["clones"] = {name: revision(folder) for name, folder in clones.items()}
    record["pairs"] = {}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"step_published_{slug()}"
    for what, cases in PAIRS.items():
        if cases[1] not in clones:
            continue
        record["pairs"][what] = pair(*cases, args)
        stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")  # what is there stays, if one fails
        stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def one_case(args: argparse.Namespace) -> dict[str, Any]:
    """Return the steps after the first (or it, where there is no other), peak memory, number of parameters."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    reuse = args.case in ("mae", "encoder")
    if reuse:  # what our training does at its start
        reuse_freed_memory()
    config = ModelConfig(num_frames=args.frames)
    model, loss = {"mae": our_mae, "neurostorm": their_mae, "encoder": our_encoder, "swift": their_encoder}[args.case](
        config, args
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01) if reuse else model.parameters(), lr=1e-4)
    count = args.neurostorm_steps if args.case == "neurostorm" else args.steps
    steps = [timed(loss, optimizer) for _ in range(1 + count)]
    told = steps[1:] or steps
    peak = peak_memory_gb(torch.device("cpu"))
    return {"parameters": sum(p.numel() for p in model.parameters()), "peak_gb": peak, "steps": told}


def our_mae(config: ModelConfig, args: argparse.Namespace) -> tuple[torch.nn.Module, Loss]:
    """Return our masked autoencoder and its loss on a clip of codes, half of the windows hidden."""
    model = MaskedAutoencoder(config)
    init_weights(model, seed=0)
    codes = codes_in(ball(config), config)
    mask = draw_mask(MaskConfig(strategy="window"), config, 0, 0, torch.zeros(1, dtype=torch.int64), "cpu")
    return model, lambda: model(codes, mask, True).loss


def their_mae(config: ModelConfig, args: argparse.Namespace) -> tuple[torch.nn.Module, Loss]:
    """Return the published masked autoencoder and its loss on a clip."""
    model = published_model(args.neurostorm, config, args.mamba)
    volume = a_clip(config)
    return model, lambda: model(volume)[1]


def our_encoder(config: ModelConfig, args: argparse.Namespace) -> tuple[torch.nn.Module, Loss]:
    """Return our encoder and the mean square of its latent map."""
    model = Backbone(config)
    init_weights(model, seed=0)
    return latent(model, config)


def their_encoder(config: ModelConfig, args: argparse.Namespace) -> tuple[torch.nn.Module, Loss]:
    """Return SwiFT's encoder and the mean square of its latent map."""
    return latent(published_swift(args.swift, config), config)


def latent(model: torch.nn.Module, config: ModelConfig) -> tuple[torch.nn.Module, Loss]:
    """Return an encoder and the mean square of its latent map of a clip."""
    volume = a_clip(config)
    return model, lambda: model(volume).square().mean()


def a_clip(config: ModelConfig) -> torch.Tensor:
    """Return noise as a clip."""
    return torch.randn(1, config.in_channels, *config.image_size, config.num_frames)


def timed(loss: Loss, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Take a step; return the seconds of its phases, and its processor seconds over all threads."""
    processor_s, marks = time.process_time(), [time.perf_counter()]
    value = loss()
    marks.append(time.perf_counter())
    value.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    optimizer.zero_grad()
    marks.append(time.perf_counter())
    seconds = {name: end - start for name, start, end in zip(PHASES, marks, marks[1:], strict=False)}
    return seconds | {"step_s": marks[-1] - marks[0], "processor_s": time.process_time() - processor_s}


def pair(ours: str, peer: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run ours, the peer, ours again; return medians of each."""
    before, theirs, after = (child(case, args) for case in (ours, peer, ours))
    both = before | {"steps": before["steps"] + after["steps"], "peak_gb": max(before["peak_gb"], after["peak_gb"])}
    return {NAMES[ours]: summary(both), NAMES[peer]: summary(theirs)}


def child(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a case in a process of its own."""
    print(f"{case} ...", file=sys.stderr, flush=True)
    words = ["--case", case, "--frames", args.frames, "--threads", args.threads, "--steps", args.steps]
    words += ["--neurostorm-steps", args.neurostorm_steps]
    for name in ("neurostorm", "mamba", "swift"):
        words += [f"--{name}", getattr(args, name)] if getattr(args, name) else []
    said = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(said.stdout.splitlines()[-1])


def summary(case: dict[str, Any]) -> dict[str, Any]:
    """Return medians over steps, and all of them."""
    steps = case["steps"]
    medians = {name: round(statistics.median(step[name] for step in steps), 3) for name in steps[0]}
    rounded = [{name: round(seconds, 3) for name, seconds in step.items()} for step in steps]
    return {"parameters": case["parameters"], **medians, "peak_gb": round(case["peak_gb"], 3), "steps": rounded}


def report(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    clones = ", ".join(f"{name} {commit}" for name, commit in record["clones"].items())
    lines = [
        "# A training step on a CPU beside the published code",
        "",
        f"Base model, a clip of {record['frames']} frames, float32. {record['machine']}, threads: {record['threads']}, "
        f"load {record['load_before']} before; torch {record['torch']}; {record['date']}, commit {record['commit']}; "
        f"clones: {clones}; `{record['command']}`.",
        "",
        "| | | parameters | forward s | backward s | step s | processor s | peak resident GB | steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for what, sides in record["pairs"].items():
        for name, row in sides.items():
            keys = ("forward_s", "backward_s", "step_s", "processor_s", "peak_gb")
            figures = " | ".join(f"{row[key]:.2f}" for key in keys)
            lines.append(f"| {what} | {name} | {row['parameters']:,} | {figures} | {len(row['steps'])} |")
    lines += [
        "",
        "Medians of the steps after the first of a process; a single step is the first. On a GPU the published",
    ]
    lines += ["NeuroSTORM has mamba's CUDA scan, which is another matter."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
