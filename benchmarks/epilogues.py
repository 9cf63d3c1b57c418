"""Which parts of a block are worth a kernel of their own: eager torch, torch.compile and our kernels, by numbers.

python benchmarks/epilogues.py [--device H200] [--batch 8]

A model, not a measurement: for each way to run norm + in-projection, selection, gate + out-projection + residual and
norm + MLP + residual, forward and backward, the kernels it takes, the bytes it moves and the time at a device's full
rates and at the rates that good kernels reach (`passes.REACHED`). As a check of what torch.compile fuses, the formulas
of the last two go through Inductor here and its kernels are counted (`--no-inductor` leaves that out).
Writes benchmarks/results/epilogues_DEVICE.json and .md.
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from passes import gate_passes, mlp_passes, project_passes, select_passes, step_passes  # beside this file
from torch.nn import functional as F

from fmri_scale.kernels import roofline
from fmri_scale.kernels.cases import STAGES

ROOT = Path(__file__).resolve().parents[1]
PLANS = {"project": project_passes, "select": select_passes, "gate": gate_passes, "mlp": mlp_passes}
WAYS = {"project": ("eager", "kernel"), "select": ("eager", "kernel")}
WAYS |= dict.fromkeys(("gate", "mlp"), ("eager", "inductor", "kernel"))


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(roofline.DEVICES), default="H200")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--no-inductor", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    device = roofline.DEVICES[args.device]
    record: dict[str, Any] = {"command": " ".join(["python benchmarks/epilogues.py", *sys.argv[1:]])}
    record |= {"date": date.today().isoformat(), "torch": torch.__version__, "device": device.name, "batch": args.batch}
    record["rows"] = [
        row(name, way, stage, args.batch, device) for name in PLANS for stage in STAGES for way in WAYS[name]
    ]
    record["steps"] = [step(ways, args.batch, device) for ways in combinations()]
    record["inductor_kernels"] = {} if args.no_inductor else {name: inductor_kernels(name) for name in ("gate", "mlp")}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"epilogues_{device.name}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def row(name: str, way: str, stage: Any, batch: int, device: roofline.Device) -> dict[str, Any]:
    """One epilogue of one block, run one way."""
    passes = PLANS[name](stage, batch, way, device.arch)
    found = {"epilogue": name, "way": way, "stage": stage.name, "kernels": len(passes)}
    found["mbytes"] = sum(p.work.bytes for p in passes) / 1e6
    found["full_us"] = sum(p.seconds(device) for p in passes) * 1e6
    found["reached_us"] = sum(p.seconds(device, reached=True) for p in passes) * 1e6
    return found


def combinations() -> list[dict[str, str]]:
    """Ways to run the parts of all blocks of a step, from plain torch to as it runs today."""
    parts = ("mlp", "gate", "select", "project")
    return [
        dict.fromkeys(parts, "eager"),
        {"project": "eager", "select": "eager", "gate": "inductor", "mlp": "inductor"},
        *({part: "kernel" if i < count else "eager" for i, part in enumerate(parts)} for count in (1, 2, 3, 4)),
    ]


def step(ways: dict[str, str], batch: int, device: roofline.Device) -> dict[str, Any]:
    """Predicted time of the whole step."""
    parts = list(step_passes(batch, device.arch, ways))
    seconds = sum(times * sum(p.seconds(device, reached=True) for p in passes) for _, times, passes in parts)
    return {"ways": ways, "reached_us": seconds * 1e6, "kernels": sum(n * len(p) for _, n, p in parts)}


def inductor_kernels(name: str) -> dict[str, int]:
    """Kernels and library calls that Inductor makes of an epilogue forward and backward, compiled for this CPU."""
    from torch._inductor import metrics
    from torch._inductor.utils import run_and_get_code

    C, E, H = 36, 72, 144
    x = torch.randn(2, 64, C, requires_grad=True)
    if name == "gate":
        y, z, w = (torch.randn(s, requires_grad=True) for s in ((2, 64, E), (2, 64, E), (C, E)))
        inputs = (x, y, z, w)

        def run(x, y, z, w):
            return x + F.linear(y * F.silu(z), w)
    else:
        shapes = ((C,), (C,), (H, C), (H,), (C, H), (C,))
        inputs = (x, *(torch.randn(s, requires_grad=True) for s in shapes))

        def run(x, gain, shift, up, up_bias, down, down_bias):
            hidden = F.gelu(F.linear(F.layer_norm(x, (C,), gain, shift), up, up_bias))
            return x + F.linear(hidden, down, down_bias)

    torch.compiler.reset()
    metrics.reset()
    made = torch.compile(run)

    def both():
        torch.autograd.grad(made(*inputs).sum(), inputs)

    _, codes = run_and_get_code(both)
    calls = sum(code.count("extern_kernels.") for code in codes)
    return {"generated": metrics.generated_kernel_count, "library": calls}


def report(record: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"# Parts of a block: a prediction for {record['device']}",
        "",
        f"`{record['command']}`, {record['date']}, torch {record['torch']}; {record['batch']} clips, bf16. No figure "
        "here was measured on a GPU: times follow from bytes, products and instructions (benchmarks/passes.py), at the "
        "device's full rates and at those that good kernels reach.",
        "",
        "One block, forward and backward:",
        "",
        "| part | stage | how | kernels | MB | us at full rates | us at reached rates |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        lines.append(
            f"| {r['epilogue']} | {r['stage']} | {r['way']} | {r['kernels']} | {r['mbytes']:.1f} | "
            f"{r['full_us']:.1f} | {r['reached_us']:.1f} |"
        )
    lines += ["", "The whole step (at reached rates); the last line is how the code runs:", ""]
    lines += ["| how | kernels | us | us a clip |", "|---|---|---|---|"]
    for s in record["steps"]:
        name = ", ".join(f"{k}: {v}" for k, v in s["ways"].items())
        lines.append(f"| {name} | {s['kernels']} | {s['reached_us']:.0f} | {s['reached_us'] / record['batch']:.0f} |")
    if record["inductor_kernels"]:
        found = "; ".join(
            f"{name}: {k['generated']} generated, {k['library']} library calls"
            for name, k in record["inductor_kernels"].items()
        )
        lines += ["", f"What Inductor makes of them, forward and backward, on this CPU: {found}."]
    lines += [
        "",
        "Kernels run on tokens of up to 128 channels (the first two stages, nine tenths of the work), select on all; "
        "wider tokens run in torch, whose large products are near the floor. Not built: merging and expanding by "
        "gather, whose copies are 3 % of the bytes of a step.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
