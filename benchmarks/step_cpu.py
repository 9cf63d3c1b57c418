"""Seconds of a training step of a model on this CPU: one clip, forward and backward apart, and peak memory.

python benchmarks/step_cpu.py                                   the base model (published NeuroSTORM's size)
python benchmarks/step_cpu.py configs/model/tiny.yaml --threads 1
python benchmarks/step_cpu.py --volumes                         codes are decoded to a volume in every step

Writes benchmarks/results/step_cpu_MODEL_MACHINE.json and .md. Random data, random weights, half of the tokens hidden,
the loss in a brain-sized ball. The first step (allocation, code loaded on demand) is reported apart. Beside the
published code: step_published.py.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import processor, slug  # beside this file

from fmri_scale.config import MaskConfig, ModelConfig, load_config
from fmri_scale.data import ClipBatch, decode
from fmri_scale.kernels.clips import CodedClips, voxel_lookup
from fmri_scale.kernels.memory import reuse_freed_memory
from fmri_scale.models import MaskedAutoencoder, cost, draw_mask, parameter_groups
from fmri_scale.training.throughput import peak_memory_gb

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs/model/base.yaml")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    parser.add_argument("--volumes", action="store_true", help="decode the codes that training reads as they are")
    parser.add_argument("--repeats", type=int, default=5, help="steps after the first; the median is reported")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reuse_freed_memory()
    config = load_config([args.config]).model
    load_before = os.getloadavg()[0]
    steps = measure(config, args.repeats + 1, args.volumes)
    record = summary(args.config.stem, config, steps) | environment(args.threads, load_before)
    record["input"] = "volumes" if args.volumes else "codes"
    stem = args.out / f"step_cpu_{args.config.stem}{'_volumes' * args.volumes}_{slug()}"
    args.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def measure(config: ModelConfig, steps: int, volumes: bool) -> list[dict[str, float]]:
    """Return the seconds of each phase of each step, and its processor seconds over all threads (robust to load)."""
    model = MaskedAutoencoder(config)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-4)
    inside = ball(config)
    codes = codes_in(inside, config)
    found = []
    for step in range(steps):
        processor_s = time.process_time()
        marks = [time.perf_counter()]
        mask = draw_mask(MaskConfig(), config, 0, 0, torch.tensor([step]), "cpu")
        loss = model(decoded(codes, inside), mask, inside).loss if volumes else model(codes, mask, True).loss
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        phases = ("forward_s", "backward_s", "optimizer_s")
        seconds = {name: end - start for name, start, end in zip(phases, marks, marks[1:], strict=False)}
        found.append(seconds | {"processor_s": time.process_time() - processor_s})
    return found


def codes_in(inside: torch.Tensor, config: ModelConfig) -> CodedClips:
    """Return a clip as random int8 codes of the voxels that are scored."""
    places = inside.flatten().nonzero().squeeze(1)
    codes = torch.randint(-127, 128, (1, config.num_frames, len(places)), dtype=torch.int8)
    scale = torch.stack([torch.randn(1, len(places)), torch.full((1, len(places)), 0.02)], 1).half()
    one, zero = torch.ones(1), torch.zeros(1)
    (x, y, z), (px, py, pz) = config.image_size, config.patch_size[:3]
    return CodedClips(codes, scale, one, zero, zero, voxel_lookup(places, (x, y, z)), (x, y, z), (px, py, pz))


def decoded(clips: CodedClips, inside: torch.Tensor) -> torch.Tensor:
    """Return the volume of these codes."""
    one, zero, number = clips.gain, clips.outside, torch.zeros(1, dtype=torch.int64)
    batch = ClipBatch(clips.codes, clips.scale, None, one, zero, one, zero, *[number] * 4, ["random"], one.bool())
    return decode(batch, "run_z", inside.flatten().nonzero().squeeze(1), list(inside.shape))


def ball(config: ModelConfig) -> torch.Tensor:
    """Return a ball of 27 % of the volume, bool `[X, Y, Z]`: about the share of the brain in its grid."""
    axes = [torch.linspace(-1, 1, n) for n in config.image_size]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    return radius < 0.8


def summary(name: str, config: ModelConfig, steps: list[dict[str, float]]) -> dict[str, Any]:
    """Return medians over the warm steps, and what the model is."""
    warm = {phase: statistics.median(step[phase] for step in steps[1:]) for phase in steps[0]}
    whole = cost(config)
    return {
        "model": name,
        "parameters": whole.total.parameters,
        "frames": config.num_frames,
        "gflops": (whole.total.forward_flops + whole.total.backward_flops) / 1e9,
        **{phase: round(seconds, 4) for phase, seconds in warm.items()},
        "first_step_s": round(sum(steps[0].values()) - steps[0]["processor_s"], 3),
        "peak_resident_gb": round(peak_memory_gb(torch.device("cpu")), 3),
        "steps": [{phase: round(seconds, 4) for phase, seconds in step.items()} for step in steps],
    }


def environment(threads: int, load: float) -> dict[str, Any]:
    """Return where, when and with what this was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "command": " ".join(["python benchmarks/step_cpu.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "machine": processor(),
        "threads": threads,
        "load_before": round(load, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report(record: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        f"# A training step of the {record['model']} model on a CPU",
        "",
        f"{record['parameters']:,} parameters, one clip of {record['frames']} frames ({record['input']}), "
        f"{record['gflops']:.0f} GFLOP. "
        f"{record['machine']}, {record['threads']} threads, load {record['load_before']} before; torch "
        f"{record['torch']}; {record['date']}, commit {record['commit']}; `{record['command']}`.",
        "",
        "| | forward s | backward s | both s | optimizer s | processor s | peak resident GB |",
        "|---|---|---|---|---|---|---|",
        f"| fmri_scale (median of {len(record['steps']) - 1}) | {record['forward_s']:.3f} | {record['backward_s']:.3f} "
        f"| {record['forward_s'] + record['backward_s']:.3f} | {record['optimizer_s']:.3f} "
        f"| {record['processor_s']:.2f} | {record['peak_resident_gb']:.2f} |",
    ]
    lines += ["", f"The first step took {record['first_step_s']:.2f} s."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
