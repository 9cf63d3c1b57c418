"""Write the launch table of an architecture: `python -m fmri_scale.kernels.tune --arch sm_90 [--measure]`.

Without a GPU a candidate's time is predicted from its compiled code: instructions a token, registers (how many warps
a multiprocessor holds), how many instructions a lone warp issues a clock, and the bytes of the sums that programs
leave to each other. With `--measure` the candidates are timed on the GPU at hand, which must be of that architecture;
this is also how a table for an architecture without one is made. Either way the table says which (`basis`), and
candidates that spill are out. The scan's rules depend on how many channels times windows there are to share out,
because few programs leave multiprocessors idle and many small ones repeat work.
"""

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmri_scale.kernels import aot, roofline, tuning
from fmri_scale.kernels.conv import cases as conv_cases
from fmri_scale.kernels.conv import triton as conv
from fmri_scale.kernels.launches import Launch, slots
from fmri_scale.kernels.mlp import cases as mlp_cases
from fmri_scale.kernels.mlp import triton as mlp
from fmri_scale.kernels.scan import cases as scan_cases
from fmri_scale.kernels.scan import triton as scan
from fmri_scale.kernels.windows import Windows

LONE_ISSUE = 0.45
"Instructions a clock that one warp alone issues, assumed: chains and shared-memory exchanges leave gaps. Unmeasured."
REGISTERS = 65536
WIDTH = 72
"Width at which candidates are compiled: all others of the base model are multiples of it."
WINDOWS = Windows((8, 8, 8, 20), (4, 4, 4, 4), (2, 2, 2, 2))
SCAN_CANDIDATES = list(itertools.product((72, 36, 24, 12, 8), (1, 2, 4)))
"Channels of a program (parts of that width), and tokens unrolled."
CONV_CANDIDATES = list(itertools.product((8, 16, 32), (2, 4, 8)))
"Slots walked one after the other, and values of a thread."
CONV_REGISTERS = 128
"Of a thread of the convolution at most: it waits for memory, so 16 warps at least must fit on a multiprocessor."
MLP_CANDIDATES = [(32, 64), (64, 32), (32, 32)]
"Tokens at a time and hidden values of a program."
WORK = tuple(72 * 5 * 4**i for i in range(8))
"Channels times windows of a launch: from one late stage of a clip to a large batch of the first."
DEVICES = {device.arch: device for name in ("A100", "H200", "B200") for device in (roofline.DEVICES[name],)}
Rule = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One way to launch a kernel, as compiled."""

    rule: tuple[tuple[str, int], ...]
    slots: float
    "Instructions a token and channel."
    registers: int

    @property
    def entry(self) -> Rule:
        """The rule as it stands in a table."""
        return dict(self.rule)


def main(argv: list[str] | None = None) -> int:
    """Tune one architecture and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", required=True, help="sm_80, sm_90, sm_100; with --measure any")
    parser.add_argument("--measure", action="store_true", help="time the candidates on this machine's GPU")
    parser.add_argument("--out", type=Path, default=tuning.TABLES)
    args = parser.parse_args(argv)
    device = torch.device("cuda", 0) if args.measure else None
    if device is None and args.arch not in DEVICES:
        parser.error(f"--arch {args.arch}: only {', '.join(DEVICES)} can be predicted; others need --measure")
    if device is not None and (not torch.cuda.is_available() or tuning.architecture(device) != args.arch):
        found = tuning.architecture(device) if torch.cuda.is_available() else "missing"
        parser.error(f"--measure: the GPU is {found}, not {args.arch}")
    path = args.out / f"{args.arch}.json"
    path.write_text(json.dumps(tune(args.arch, device), indent=1) + "\n")
    print(f"{path}: {json.loads(path.read_text())['basis']}")
    return 0


def tune(arch: str, device: torch.device | None) -> dict[str, Any]:
    """The table of an architecture, predicted or, on a device, measured."""
    table: dict[str, Any] = {
        "basis": "static" if device is None else f"measured on {torch.cuda.get_device_name(device)}"
    }
    for kernel in ("scan_forward", "scan_backward"):
        table[kernel] = scan_rules(kernel, arch, device)
    for kernel in ("conv_forward", "conv_backward"):
        found = candidates(kernel, arch, device)
        cost = {c: c.slots if device is None else measure(kernel, c, WORK[-2], device) for c in found}
        table[kernel] = min(cost, key=lambda c: cost[c]).entry
    found = candidates("mlp_weight", arch, device)
    cost = {c: c.slots if device is None else measure("mlp_weight", c, WORK[-2], device) for c in found}
    table["mlp_weight"] = min(cost, key=lambda c: cost[c]).entry
    return table


def scan_rules(kernel: str, arch: str, device: torch.device | None) -> list[Rule]:
    """The best candidate for each amount of work, largest first, neighbours that agree joined."""
    compiled = candidates(kernel, arch, device)
    found: list[Rule] = []
    for work in reversed(WORK):
        cost = {
            c: predict(kernel, c, work, arch) if device is None else measure(kernel, c, work, device) for c in compiled
        }
        best = min(cost, key=lambda c: cost[c]).entry
        if found and {k: found[-1][k] for k in best} == best:
            found.pop()
        found.append({"channel_windows_at_least": work, **best})
    found[-1]["channel_windows_at_least"] = 0
    return found


def candidates(kernel: str, arch: str, device: torch.device | None) -> list[Candidate]:
    """Compile every candidate; leave out those that spill and, where nothing is timed, those that would wait."""
    rules: list[Rule] = [{"channels": c, "unroll": u, "num_warps": 1} for c, u in SCAN_CANDIDATES]
    if kernel.startswith("conv"):
        rules = [{"channels": WIDTH, "run": r, "elements_per_thread": e} for r, e in CONV_CANDIDATES]
    if kernel.startswith("mlp"):
        rules = [{"tokens": t, "hidden": h} for t, h in MLP_CANDIDATES]
    inputs = {
        name: torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device="meta")
        for name, v in _inputs(kernel, 1, WINDOWS).items()
    }
    kept = []
    for rule in rules:
        with _pinned(kernel, rule), aot.compiled(arch) as found:
            _run(kernel, inputs, WINDOWS)
        launch = Launch(kernel[:4], "", "", WIDTH, WINDOWS.num_tokens, lambda: None)
        waits = kernel.startswith("conv") and found[-1].registers > CONV_REGISTERS
        if found[-1].spilled == 0 and (device is not None or not waits):
            kept.append(Candidate(tuple(rule.items()), slots(found[-1], launch)[1] / WIDTH, found[-1].registers))
    if not kept:
        raise RuntimeError(f"{kernel} spills on {arch}, or needs too many registers, however it is launched")
    return kept


def predict(kernel: str, candidate: Candidate, work: int, arch: str) -> float:
    """Seconds of a launch: all instructions over all issue slots, or the longest line of programs one after another;
    backward, also the float32 sums of B's and C's gradients that each tile of channels leaves to be added."""
    gpu, channels, length = DEVICES[arch], candidate.entry["channels"], WINDOWS.length
    partitions = 4 * gpu.multiprocessors
    programs = work / channels
    resident = max(1, REGISTERS // 4 // (candidate.registers * 32))
    waves = -(-programs // (partitions * resident))
    together = min(resident, max(1.0, programs / partitions))
    own = candidate.slots * channels * length
    clocks = max(programs * own / partitions, waves * own * max(1 / LONE_ISSUE, together))
    partial = programs * length * 32 * 4 if kernel == "scan_backward" else 0.0
    return max(clocks / gpu.clock, partial / gpu.bytes) + partial / gpu.bytes


def measure(kernel: str, candidate: Candidate, work: int, device: torch.device) -> float:
    """Median milliseconds of a launch with as much work."""
    from triton.testing import do_bench

    windows = Windows((4, 4, 4, 4), (4, 4, 4, 4))
    inputs = {name: v.to(device) for name, v in _inputs(kernel, work // WIDTH, windows).items()}
    with _pinned(kernel, candidate.entry):
        return do_bench(lambda: _run(kernel, inputs, windows), return_mode="median")


def _pinned(kernel: str, rule: Rule):
    return tuning.override({kernel: [{**rule, "channel_windows_at_least": 0}] if kernel.startswith("scan") else rule})


def _inputs(kernel: str, batch: int, windows: Windows) -> dict[str, torch.Tensor]:
    if kernel.startswith("mlp"):
        case = mlp_cases.MlpCase((batch, windows.num_tokens), WIDTH // 2, 2 * WIDTH)
        return mlp_cases.make_inputs(case, torch.bfloat16)
    if kernel.startswith("scan"):
        made = scan_cases.make_inputs(scan_cases.ScanCase(batch, windows, WIDTH), torch.bfloat16)
    else:
        made = conv_cases.make_inputs(conv_cases.ConvCase(batch, windows, WIDTH), torch.bfloat16)
    return {name: v for name, v in made.items() if v is not None}


def _run(kernel: str, inputs: dict[str, torch.Tensor], windows: Windows) -> None:
    if kernel.startswith("mlp"):
        x, gain, shift, up, up_bias, down, down_bias = inputs.values()
        mlp.backward(x, x, gain, shift, up, up_bias, down, down_bias, 1e-5, True)
    elif kernel.startswith("scan"):
        x, dt, A, B, C, D = inputs.values()
        if kernel == "scan_forward":
            scan.forward(x, dt, A, B, C, D, windows, None, False)
        else:
            scan.backward(torch.empty_like(dt), x, dt, A, B, C, D, windows, None, False)
    else:
        x, weight, bias = inputs.values()
        if kernel == "conv_forward":
            conv.forward(x, weight, bias, windows, None)
        else:
            conv.backward(torch.empty_like(x), x, weight, bias, windows, None)


if __name__ == "__main__":
    raise SystemExit(main())
