"""What a training step of the base model does, pass by pass, and what each pass needs on a GPU at best: a model.

A pass is one kernel over all tokens of a stage: what it reads and writes (values a token), its products, and for our
own kernels the warp instructions of the code as compiled (benchmarks/results/static.json). `block_passes` lists the
passes of a block as the code runs today, or with parts of it in eager torch or torch.compile. From these come the
predicted times of `step.py` and the comparison of `epilogues.py`; both label them as predictions. Sums of the shares
that programs leave to each other, casts of weights and the optimizer are left out, of times and of launches: about
3 % of the bytes at 8 clips, a larger part of fewer. `brain_stages` are the stages of a model with brain_tokens.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmri_scale.config import ModelConfig
from fmri_scale.kernels import tuning
from fmri_scale.kernels.cases import STAGES, Stage
from fmri_scale.kernels.conv.cases import ConvCase
from fmri_scale.kernels.embed.cases import BRAIN_PATCHES, base_case
from fmri_scale.kernels.gate import triton as gate
from fmri_scale.kernels.gate.cases import GateCase
from fmri_scale.kernels.mlp import triton as mlp
from fmri_scale.kernels.mlp.cases import MlpCase
from fmri_scale.kernels.project import triton as project
from fmri_scale.kernels.project.cases import ProjectCase
from fmri_scale.kernels.roofline import (
    Device,
    Work,
    conv_work,
    embed_work,
    gate_work,
    loss_work,
    mlp_work,
    project_work,
    scan_work,
    select_work,
)
from fmri_scale.kernels.scan.cases import ScanCase
from fmri_scale.kernels.select import triton as select
from fmri_scale.kernels.select.cases import SelectCase
from fmri_scale.kernels.windows import ListedWindows, window_table
from fmri_scale.models.brain import stage_patches
from sharding.mask import DILATION_VOXELS, brain_mask

STATIC = Path(__file__).resolve().parent / "results/static.json"
BF16 = 2
STATES = 16
AS_IT_RUNS = dict.fromkeys(("project", "select", "gate", "mlp"), "kernel")
"How each part of a block runs on a GPU; parts whose kernels do not take a stage's width run in torch there."
LAUNCH_S = 4e-6
"A kernel that torch launches takes the processor about so long; a step cannot be shorter than all of them."
REACHED = {"bytes": 0.80, "flops": 0.35, "exps": 0.75, "slots": 0.75}
"Share of a device's rates that good kernels reach at these shapes (thin products), assumed. Unmeasured."
GELU_SLOTS = 30 / 32
"Warp instructions of an exact GELU a value: erf by libdevice."


@dataclass(frozen=True)
class Pass:
    """One kernel over the tokens of a stage."""

    name: str
    direction: str
    work: Work

    def seconds(self, device: Device, reached: bool = False) -> float:
        """Time of the resource that binds, at full rates or at those that are `REACHED`."""
        times = self.work.seconds(device)
        return max(t / (REACHED[name] if reached else 1.0) for name, t in times.items())


@functools.cache
def brain() -> torch.Tensor:
    """The voxels that a corpus stores, bool (96, 96, 96): `sharding.mask.brain_mask`, here dilated without scipy."""
    found = torch.from_numpy(brain_mask(dilated=False).copy())
    for _ in range(DILATION_VOXELS):
        found = torch.stack([found, *(found.roll(step, axis) for axis in range(3) for step in (-1, 1))]).any(0)
    return found


@functools.cache
def brain_stages() -> tuple[Stage, ...]:
    """The base model's stages where patches without brain have no tokens."""
    found = []
    for stage, here in zip(STAGES, stage_patches(brain(), ModelConfig()), strict=True):
        w = stage.windows
        table = window_table(here, w.grid[:3], w.window[:3], w.shift[:3])
        listed = ListedWindows((int(here.sum()), 1, 1, w.grid[3]), w.window, (0, 0, 0, w.shift[3]), table)
        found.append(dataclasses.replace(stage, windows=listed))
    return tuple(found)


def block_passes(stage: Stage, batch: int, arch: str, ways: dict[str, str] | None = None) -> list[Pass]:
    """Passes of one block as the code runs; `ways` names parts that shall run otherwise (`eager`, `inductor`)."""
    how = {**AS_IT_RUNS, **(ways or {})}
    return [
        *project_passes(stage, batch, how["project"], arch),
        *window_passes(stage, batch, arch),
        *select_passes(stage, batch, how["select"], arch),
        *gate_passes(stage, batch, how["gate"], arch),
        *mlp_passes(stage, batch, how["mlp"], arch),
    ]


def window_passes(stage: Stage, batch: int, arch: str) -> list[Pass]:
    """Convolution and scan, in window order; the convolution is made again on the way back."""
    return [
        *_own("conv", "forward", stage, batch, arch),
        *_own("scan", "forward", stage, batch, arch),
        *_own("conv", "forward", stage, batch, arch, "backward"),
        *_own("scan", "backward", stage, batch, arch),
        *_own("conv", "backward", stage, batch, arch),
    ]


def project_passes(stage: Stage, batch: int, how: str, arch: str = "sm_90") -> list[Pass]:
    """Norm and in-projection; backward, the gradient that passes by is added."""
    C, E = stage.width, 2 * stage.width
    if how == "kernel" and project.WIDEST[torch.bfloat16] >= C:
        return _own_kernels("project", stage, batch, arch)
    plan = [
        ("norm", "forward", 2 * C, 0, 0),
        ("in-projection, a half", "forward", C + E, C * E, 0),
        ("in-projection, the other", "forward", C + E, C * E, 0),
        ("norm again", "backward", 2 * C, 0, 0),
        ("weight gradient, a half", "backward", C + E, C * E, 0),
        ("weight gradient, the other", "backward", C + E, C * E, 0),
        ("in-projection gradient, a half", "backward", C + E, C * E, 0),
        ("in-projection gradient, the other", "backward", 2 * C + E, C * E, 0),
        ("norm gradient", "backward", 5 * C, 0, 0),
        ("residual gradient", "backward", 3 * C, 0, 0),
    ]
    return _plan(plan, stage, batch)


def select_passes(stage: Stage, batch: int, how: str, arch: str = "sm_90") -> list[Pass]:
    """B, C and step sizes; step sizes are made again on the way back."""
    E, R = 2 * stage.width, -(-stage.width // 16)
    M = R + 2 * STATES
    product = ("selection", "forward", E + M, E * M, 0)
    if how == "kernel" and select.WIDEST[torch.bfloat16] >= E:
        steps = _own_kernels("select", stage, batch, arch, "forward")
        again = [Pass(f"{p.name} again", "backward", p.work) for p in steps]
        return [
            *_plan([product], stage, batch),
            *steps,
            *again,
            *_own_kernels("select", stage, batch, arch, "backward"),
        ]
    plan = [
        product,
        ("step projection", "forward", R + E, R * E, 0),
        ("softplus", "forward", 2 * E, 0, 0),
        ("step projection again", "backward", R + E, R * E, 0),
        ("softplus again", "backward", 2 * E, 0, 0),
        ("step projection once more", "backward", R + E, R * E, 0),
        ("softplus gradient", "backward", 3 * E, 0, 0),
        ("step projection gradients", "backward", 2 * (E + R), 2 * R * E, 0),
        ("bias sums", "backward", E, 0, 0),
        ("join selection", "backward", 2 * M, 0, 0),
        ("selection gradients", "backward", 2 * M + 3 * E, 2 * E * M, 0),
    ]
    return _plan(plan, stage, batch)


def gate_passes(stage: Stage, batch: int, how: str, arch: str = "sm_90") -> list[Pass]:
    """y * silu(z), out-projection, residual."""
    C, E = stage.width, 2 * stage.width
    if how == "kernel" and gate.WIDEST[torch.bfloat16] >= C:
        return _own_kernels("gate", stage, batch, arch)
    plans = {
        "eager": [
            ("silu", "forward", 2 * E, 0, 0),
            ("gate", "forward", 3 * E, 0, 0),
            ("out-projection", "forward", E + C, E * C, 0),
            ("residual", "forward", 3 * C, 0, 0),
            ("silu again", "backward", 2 * E, 0, 0),
            ("gate again", "backward", 3 * E, 0, 0),
            ("out-projection gradients", "backward", 2 * (C + E), 2 * E * C, 0),
            ("gate gradients", "backward", 3 * E + 3 * E + 3 * E, 0, 0),
        ],
        "inductor": [
            ("silu and gate", "forward", 3 * E, 0, 0),
            ("out-projection", "forward", E + C, E * C, 0),
            ("residual", "forward", 3 * C, 0, 0),
            ("silu and gate again", "backward", 3 * E, 0, 0),
            ("out-projection gradients", "backward", 2 * (C + E), 2 * E * C, 0),
            ("gate gradients", "backward", 5 * E, 0, 0),
        ],
    }
    return _plan(plans["eager" if how == "kernel" else how], stage, batch)  # wide tokens run in torch


def mlp_passes(stage: Stage, batch: int, how: str, arch: str = "sm_90") -> list[Pass]:
    """Norm, map up, GELU, map down, residual; the backward pass keeps the input alone.

    The last number is how often a value is put through GELU or its derivative.
    """
    C, H = stage.width, 4 * stage.width
    if how == "kernel" and mlp.WIDEST[torch.bfloat16] >= C:
        return _own_kernels("mlp", stage, batch, arch)
    plans = {
        "eager": [
            ("norm", "forward", 2 * C, 0, 0),
            ("up", "forward", C + H, C * H, 0),
            ("gelu", "forward", 2 * H, 0, H),
            ("down", "forward", H + C, C * H, 0),
            ("residual", "forward", 3 * C, 0, 0),
            ("norm again", "backward", 2 * C, 0, 0),
            ("up again", "backward", C + H, C * H, 0),
            ("gelu again", "backward", 2 * H, 0, H),
            ("down's gradients", "backward", 2 * (C + H), 2 * C * H, 0),
            ("gelu's gradient", "backward", 3 * H, 0, H),
            ("bias sums", "backward", H + C, 0, 0),
            ("up's gradients", "backward", 2 * (C + H), 2 * C * H, 0),
            ("norm's gradient", "backward", 5 * C, 0, 0),
            ("residual's gradient", "backward", 3 * C, 0, 0),
        ],
        "inductor": [
            ("norm", "forward", 2 * C, 0, 0),
            ("up", "forward", C + H, C * H, 0),
            ("gelu", "forward", 2 * H, 0, H),
            ("down", "forward", H + C, C * H, 0),
            ("residual", "forward", 3 * C, 0, 0),
            ("norm again", "backward", 2 * C, 0, 0),
            ("up again", "backward", C + H, C * H, 0),
            ("gelu, its gradient, bias sums", "backward", 2 * H + 2 * H, 0, 2 * H),
            ("down's gradients", "backward", 2 * (C + H), 2 * C * H, 0),
            ("up's gradients", "backward", 2 * (C + H), 2 * C * H, 0),
            ("norm's and residual's gradient", "backward", 5 * C, 0, 0),
        ],
    }
    return _plan(plans["eager" if how == "kernel" else how], stage, batch)  # wide tokens run in torch


def voxel_passes(batch: int, arch: str, brain_only: bool = False) -> list[Pass]:
    """Embedding and loss on codes: of the whole model, not of a block.

    With brain_tokens both read and write the brain's tokens alone, of which the mask is given and hides half; the loss
    lists these first, and small tensors say where each patch is.
    """
    case, first, shape = base_case(batch), STAGES[0], "window"
    C, patches, positions = case.width, None, math.prod(case.grid[:3])
    if brain_only:
        first, shape = brain_stages()[0], "brain"
        patches = first.windows.grid[0]
        if patches != BRAIN_PATCHES:
            raise SystemExit(f"{patches} patches hold brain, {BRAIN_PATCHES} were compiled for (embed/cases.py)")
    tokens = batch * first.windows.num_tokens
    found = []
    for direction in ("forward", "backward"):
        slots = slots_per_token("embed", direction, shape, arch) * tokens
        found.append(Pass("embedding", direction, embed_work(case, patches=patches).with_slots(slots)))
    slots = slots_per_token("loss", "forward", shape, arch) * tokens * case.ratio
    found.append(Pass("loss and its gradients", "forward", loss_work(case, patches=patches).with_slots(slots)))
    rest = [("positions' gradient", "backward", C, 0, 0), ("frames' gradient", "backward", C, 0, 0)]
    rest += [("loss's gradient by the gradient above", "backward", 2 * C, 0, 0)]
    found += _plan(rest, first, batch)
    if brain_only:
        listing = {"pick": 2, "running count": 9, "less one": 16, "place": 17, "scatter": 16, "count": 1}
        found += [Pass(f"hidden, {name}", "forward", Work(n * tokens)) for name, n in listing.items()]
        for direction, count in (("forward", 11), ("backward", 7)):
            found += [Pass("where patches are", direction, Work(12 * positions))] * count
    return found


def step_passes(
    batch: int, arch: str, ways: dict[str, str] | None = None, brain_only: bool = False
) -> Iterator[tuple[str, int, list[Pass]]]:
    """Parts of a step: name, how often it runs, passes. Merging, expanding and the optimizer are left out (3 %).

    `brain_only` is the model with brain_tokens, on the MNI152 brain.
    """
    for stage in brain_stages() if brain_only else STAGES:
        yield stage.name, stage.blocks, block_passes(stage, batch, arch, ways)
    yield "codes", 1, voxel_passes(batch, arch, brain_only)


def slots_per_token(op: str, direction: str, stage: str, arch: str) -> float:
    """Warp instructions a token of all kernels of an operation, as compiled."""
    return sum(row["whole_per_token"] for row in static_rows(op, direction, stage, arch))


def listed_slots(op: str, direction: str, stage: Stage, arch: str) -> float:
    """Warp instructions of a clip where windows are lists, from those of whole windows.

    The kernels' loops are as long (tests/kernels/test_compiled.py); a scan walks a window's own tokens, a convolution
    as many runs as in a whole window, but shorter ones, of which backward has three slots more to walk.
    """
    windows = stage.windows
    total = 0.0
    for row in static_rows(op, direction, stage.name, arch):
        inner = row["inner_per_token"] * windows.length
        total += (row["whole_per_token"] * windows.length - inner) * windows.num_windows
        if op == "scan":
            total += inner / windows.length * windows.num_tokens
            continue
        tile = tuning.conv_tile(f"conv_{direction}", torch.device("cpu"), 2 * stage.width, windows.length)
        beyond = 3 if direction == "backward" else 0
        for count in (windows.order() >= 0).sum(1).tolist():
            total += inner * (-(-count // tile.runs) + beyond) / (tile.run + beyond)
    return total


def static_rows(op: str, direction: str, stage: str, arch: str) -> list[dict[str, Any]]:
    """What an operation's kernels were compiled to."""
    if not STATIC.exists():
        raise SystemExit(f"{STATIC}: missing; python benchmarks/static.py writes it")
    found = [
        row
        for row in json.loads(STATIC.read_text())["rows"]
        if (row["op"], row["direction"], row["stage"], row["arch"]) == (op, direction, stage, arch)
    ]
    if not found:
        raise SystemExit(f"{STATIC}: nothing of {op} {direction} {stage} on {arch}; python benchmarks/static.py")
    return found


def _own(op: str, direction: str, stage: Stage, batch: int, arch: str, when: str | None = None) -> list[Pass]:
    """One of our kernels; `when` a forward kernel runs in the backward pass."""
    tokens, width = batch * stage.windows.num_tokens, 2 * stage.width
    if op == "scan":
        work = scan_work(ScanCase(batch, stage.windows, width), direction)
    else:
        work = conv_work(ConvCase(batch, stage.windows, width), direction)
    if isinstance(stage.windows, ListedWindows):
        work = work.with_slots(batch * listed_slots(op, direction, stage, arch))
    else:
        work = work.with_slots(slots_per_token(op, direction, stage.name, arch) * tokens)
    return [Pass(op if when is None else f"{op} again", when or direction, work)]


def _own_kernels(op: str, stage: Stage, batch: int, arch: str, only: str | None = None) -> list[Pass]:
    """Our kernels of an operation: its products shared among them, and the bytes that each moves itself."""
    C, E, R, tokens = stage.width, 2 * stage.width, -(-stage.width // 16), stage.windows.num_tokens
    layer = 2 * -(-R // 8) * 8  # in float32
    layers, maps = -(-E // select.PIECES["step"]), 2 * STATES
    values = {"project": C + 2 * E, "project_gradients": 3 * C + 2 * E}
    values |= {"select_dt": R + E, "select_step": E + R + layers * layer, "select_map": 3 * E + maps + layers * layer}
    values |= {"gate": 2 * E + 2 * C, "gate_input": 4 * E + C, "gate_weight": 2 * E + C}
    values |= {"mlp": 2 * C, "mlp_input": 3 * C, "mlp_weight": 2 * C}
    case: Any = {
        "project": ProjectCase(batch, tokens, C, E),
        "select": SelectCase(batch, tokens, E, R),
        "gate": GateCase(batch, tokens, E, C),
        "mlp": MlpCase((batch, tokens), C, 4 * C),
    }[op]
    work_of: Any = {"project": project_work, "select": select_work, "gate": gate_work, "mlp": mlp_work}[op]
    found = []
    for direction in ("forward", "backward") if only is None else (only,):
        work, rows = work_of(case, direction), static_rows(op, direction, stage.name, arch)
        for row in rows:
            moved, slots = values[row["kernel"]] * BF16 * batch * tokens, row["whole_per_token"] * batch * tokens
            part = Work(moved, work.flops / len(rows), work.exps / len(rows), slots)
            found.append(Pass(row["kernel"], direction, part))
    return found


def _plan(plan: list[tuple[str, str, int, int, int]], stage: Stage, batch: int) -> list[Pass]:
    """Passes of a list of (name, direction, values, products, GELUs) a token."""
    tokens = batch * stage.windows.num_tokens
    return [
        Pass(name, direction, Work(values * BF16 * tokens, 2 * products * tokens, 0.0, GELU_SLOTS * gelus * tokens))
        for name, direction, values, products, gelus in plan
    ]
