"""The whole training step on a GPU, data resident: frames per second, peak memory, launches, fraction of the floor.

python benchmarks/step.py [CONFIG.yaml] [--batch 1 8 32] [--backend auto] [--compile] [--published DIR] [--smoke]

Random int8 clips, half of the windows hidden, forward, backward and a fused AdamW step under bf16 autocast.
`--published` runs the same step with a clone of the published NeuroSTORM, which takes float volumes, in the same
process; it needs monai, einops and mamba_ssm built with MAMBA_KEEP_CUDA_BUILD=TRUE (`published.py`). Without a GPU
nothing is measured: floor and prediction of the base model are written (`passes.py`: bytes, products, instructions as
compiled, launches), the measured columns stay empty. `--brain-tokens` times model.brain_tokens=true as well, on the
MNI152 brain; its prediction is always written. `--smoke` runs a tiny model once on any device, to know that this
script works. Needs torch, triton and numpy; a CONFIG.yaml also needs omegaconf.
Writes benchmarks/results/step_DEVICE.json and .md.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from kernel_calls import clips_of  # beside this file
from passes import LAUNCH_S, brain, brain_stages, step_passes
from published import SCANS, published_model

from fmri_scale.config import MaskConfig, ModelConfig
from fmri_scale.kernels import roofline
from fmri_scale.kernels.embed.cases import ClipCase
from fmri_scale.models import Anatomy, MaskedAutoencoder, draw_mask, parameter_groups

ROOT = Path(__file__).resolve().parents[1]
TINY = {"image_size": [48, 48, 48], "num_frames": 4, "embed_dim": 12, "depths": [1] * 4, "window_size": [2, 2, 2, 4]}
Step = Callable[[], None]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, help="model (default: the base model)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--backend", default="auto", help="kernels: auto, torch, triton or mamba_ssm")
    parser.add_argument("--checkpoint-blocks", action="store_true", help="recompute blocks in the backward pass")
    parser.add_argument("--brain-tokens", action="store_true", help="also with model.brain_tokens")
    parser.add_argument("--compile", action="store_true", help="the model through torch.compile")
    parser.add_argument("--published", type=Path, metavar="DIR", help="clone of the published NeuroSTORM")
    parser.add_argument("--published-scan", choices=SCANS, default="mamba_ssm")
    parser.add_argument("--device", choices=sorted(roofline.DEVICES), help="whose floor (default: the GPU's, or H200)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one step, any device")
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results; required with --smoke)")
    args = parser.parse_args()
    if args.smoke and args.out is None:
        parser.error("--smoke: its figures mean nothing; say with --out where to write them")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = roofline.DEVICES[args.device or next((n for n in roofline.DEVICES if n in (gpu or "")), "H200")]
    config = model_config(args)
    rows = [bench(args, config, batch, device) for batch in ([1] if args.smoke else args.batch)]
    record: dict[str, Any] = {"command": " ".join(["python benchmarks/step.py", *sys.argv[1:]]), "gpu": gpu}
    record |= {"date": date.today().isoformat(), "torch": torch.__version__, "floor_of": device.name}
    parts = None if config.embed_dim != 36 else parts_of(8, device)
    brain_parts = None if parts is None else parts_of(8, device, brain_only=True)
    record |= {"smoke": args.smoke, "parts": parts, "brain_parts": brain_parts}
    record |= {"brain_patches": [stage.windows.grid[0] for stage in brain_stages()], "rows": rows}
    stem = (args.out or ROOT / "benchmarks/results") / f"step_{device.name}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The model that is timed."""
    if args.smoke:
        config = ModelConfig(**TINY)
    elif args.config is None:
        config = ModelConfig()
    else:
        from fmri_scale.config import load_config

        config = load_config([args.config]).model
    config.backend, config.checkpoint_blocks = args.backend, args.checkpoint_blocks or config.checkpoint_blocks
    return config


def bench(args: argparse.Namespace, config: ModelConfig, batch: int, device: roofline.Device) -> dict[str, Any]:
    """One row: what is predicted of the base model and, where it can run, what was measured."""
    row: dict[str, Any] = {"batch": batch}
    if config.embed_dim == 36:
        row |= predicted(batch, device)
        row["brain_tokens"] = predicted(batch, device, brain_only=True)
    if not (torch.cuda.is_available() or args.smoke):
        return row
    frames, steps = batch * config.num_frames, 1 if args.smoke else args.steps
    row["ours"] = measure(our_step(config, batch, args.compile), frames, steps)
    if args.brain_tokens:
        listed = replace(config, brain_tokens=True)
        row.setdefault("brain_tokens", {})["ours"] = measure(our_step(listed, batch, args.compile), frames, steps)
    if args.published:
        row["published"] = measure(published_step(args.published, config, batch, args.published_scan), frames, steps)
    return row


def predicted(batch: int, device: roofline.Device, brain_only: bool = False) -> dict[str, Any]:
    """Microseconds of the base model's step at full rates and at those that good kernels reach, and its launches."""
    parts = list(step_passes(batch, device.arch, brain_only=brain_only))
    full, reached = (
        sum(times * sum(p.seconds(device, reached=slow) for p in passes) for _, times, passes in parts)
        for slow in (False, True)
    )
    launches = sum(times * len(passes) for _, times, passes in parts)
    return {
        "floor_us": full * 1e6,
        "predicted_us": max(reached, launches * LAUNCH_S) * 1e6,
        "predicted_launches": launches,
    }


def parts_of(batch: int, device: roofline.Device, brain_only: bool = False) -> list[dict[str, Any]]:
    """The prediction by stage and direction."""
    return [
        {
            "part": name,
            "runs": times,
            "direction": direction,
            "launches": times * sum(p.direction == direction for p in passes),
            **{
                key: times * 1e6 * sum(p.seconds(device, slow) for p in passes if p.direction == direction)
                for key, slow in (("floor_us", False), ("predicted_us", True))
            },
        }
        for name, times, passes in step_passes(batch, device.arch, brain_only=brain_only)
        for direction in ("forward", "backward")
    ]


def where() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def our_step(config: ModelConfig, batch: int, compile_: bool) -> Step:
    """A training step from int8 codes."""
    size, patch = tuple(config.image_size), tuple(config.patch_size[:3])
    case = ClipCase(batch, size, patch, config.num_frames, config.embed_dim)  # type: ignore[arg-type]
    clips, _ = clips_of(case, brain() if size == tuple(brain().shape) and config.brain_tokens else None)
    model: Any = MaskedAutoencoder(config).to(where())
    masking, anatomy = MaskConfig(strategy="window"), Anatomy()
    if config.brain_tokens:
        model.set_brain(clips.lookup.view(size) >= 0)
        masking.ratio_of, anatomy = "brain", Anatomy(brain=model.computed)
    mask = draw_mask(masking, config, 0, 0, torch.arange(batch), where(), anatomy)
    groups = parameter_groups(model, 0.01)
    model = torch.compile(model) if compile_ else model
    return _step(torch.optim.AdamW(groups, lr=1e-4, fused=True), lambda: model(clips, mask, brain=True).loss)


def published_step(folder: Path, config: ModelConfig, batch: int, scan: str) -> Step:
    """The same step of the published code, from float volumes."""
    model = published_model(folder, config, scan).to(where())
    volume = torch.randn(batch, config.in_channels, *config.image_size, config.num_frames, device=where())
    return _step(torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), lambda: model(volume)[1])


def _step(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Step:
    def step() -> None:
        with torch.autocast(where(), torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(step: Step, frames: int, steps: int) -> dict[str, float]:
    """Median step of `steps` after 5 (smoke: after 1), and on a GPU peak memory and kernel launches."""
    for _ in range(5 if steps > 1 else 1):
        step()
    times = sorted(_seconds(step) * 1e6 for _ in range(steps))
    found = {
        "step_us": statistics.median(times),
        "low_us": times[len(times) // 5],
        "high_us": times[-1 - len(times) // 5],
    }
    found["frames_per_s"] = frames / found["step_us"] * 1e6
    if not torch.cuda.is_available():
        return found
    torch.cuda.reset_peak_memory_stats()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return found | {"peak_gb": torch.cuda.max_memory_allocated() / 1e9, "launches": len(kernels)}


def _seconds(step: Step) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report(record: dict[str, Any]) -> str:
    """The rows as Markdown."""
    machine = record["gpu"] or "no GPU: nothing is measured, measured columns stay empty"
    machine = "SMOKE TEST of a tiny model: no figure here means anything" if record["smoke"] else machine
    head = ["batch", "floor us", "predicted us", "predicted frames/s", "step us", "20-80 %", "frames/s", "of floor"]
    head += ["peak GB", "launches", "published us", "times faster"]
    lines = [
        "# A training step on a GPU",
        "",
        f"`{record['command']}`, {record['date']}; {machine}; torch {record['torch']}; floor of {record['floor_of']}.",
        "",
        "Floor and prediction are a model of the base model's step, not measurements: every pass at the device's full "
        "rates, and at the rates that good kernels reach, no shorter than its launches (benchmarks/passes.py).",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in record["rows"]]
    if record["parts"]:
        lines += _parts("The prediction by part, 8 clips:", record["parts"])
    brains = [{**row["brain_tokens"], "batch": row["batch"]} for row in record["rows"] if "brain_tokens" in row]
    if brains:
        patches = ", ".join(map(str, record["brain_patches"]))
        lines += ["", "## With model.brain_tokens=true", ""]
        lines += [
            "The same, PREDICTED alike, where patches without a voxel of the MNI152 brain (dilated by two) are left "
            f"out: by stage {patches} are computed, of 4096, 512, 64, 8. The mask hides half of the brain's tokens.",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
        ]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in brains]
        if record["brain_parts"]:
            lines += _parts("The prediction by part, 8 clips, brain tokens:", record["brain_parts"])
    return "\n".join(lines) + "\n"


def _parts(title: str, parts: list[dict[str, Any]]) -> list[str]:
    """A prediction by part as a table."""
    lines = ["", title, ""]
    lines += ["| part | times | direction | launches | floor us | predicted us |", "|---|---|---|---|---|---|"]
    for p in parts:
        times = (f"{p['floor_us']:.0f}", f"{p['predicted_us']:.0f}")
        cells = (p["part"], p["runs"], p["direction"], p["launches"], *times)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _cells(row: dict[str, Any]) -> list[str]:
    ours, theirs = row.get("ours"), row.get("published")
    cells = [str(row["batch"]), *[""] * 3]
    if "floor_us" in row:
        cells[1:] = [f"{row['floor_us']:.0f}", f"{row['predicted_us']:.0f}"]
        cells += [f"{row['batch'] * 20 / row['predicted_us'] * 1e6:.0f}"]
    if not ours:
        return [*cells, *[""] * 8]
    cells += [f"{ours['step_us']:.0f}", f"{ours['low_us']:.0f}-{ours['high_us']:.0f}", f"{ours['frames_per_s']:.0f}"]
    cells += [f"{row['floor_us'] / ours['step_us']:.2f}" if "floor_us" in row else ""]
    cells += [f"{ours['peak_gb']:.2f}" if "peak_gb" in ours else "", str(ours.get("launches", ""))]
    return [
        *cells,
        *([f"{theirs['step_us']:.0f}", f"{theirs['step_us'] / ours['step_us']:.2f}"] if theirs else ["", ""]),
    ]


if __name__ == "__main__":
    main()
