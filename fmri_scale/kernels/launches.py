"""Every kernel of a training step of the base model, launched on tensors without memory: to be compiled and counted.

`launches(op, batch)` are what tests of instruction budgets, `benchmarks/static.py` and the predictions of
`benchmarks/kernels.py` share. `slots` brings machine code and launch together: how many warp instructions a token
costs, given how often each loop of each kernel runs. A search for a unit inside its range (cycle walking) counts as one
pass, and code for visible tokens as always run, whatever the mask.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fmri_scale.kernels.aot import Compiled
from fmri_scale.kernels.cases import STAGES, Stage
from fmri_scale.kernels.clips import CodedClips, Hidden, num_units
from fmri_scale.kernels.conv import triton as conv
from fmri_scale.kernels.embed import cases as clip_cases
from fmri_scale.kernels.embed import triton as embed
from fmri_scale.kernels.gate import cases as gate_cases
from fmri_scale.kernels.gate import triton as gate
from fmri_scale.kernels.loss import triton as loss
from fmri_scale.kernels.mask import triton as mask
from fmri_scale.kernels.mlp import cases as mlp_cases
from fmri_scale.kernels.mlp import triton as mlp
from fmri_scale.kernels.project import cases as project_cases
from fmri_scale.kernels.project import triton as project
from fmri_scale.kernels.scan import triton as scan
from fmri_scale.kernels.select import cases as select_cases
from fmri_scale.kernels.select import triton as select
from fmri_scale.kernels.strd import triton as strd

OPERATIONS = ("scan", "conv", "project", "select", "gate", "mlp", "mask", "embed", "loss", "strd")
STATES, TAPS = 16, 4


@dataclass(frozen=True)
class Launch:
    """One call of an operation."""

    op: str
    direction: str
    "forward or backward; the loss makes its gradients forward."
    stage: str
    """Stage of the base model or, for mask, embed and loss, what is hidden; `brain`: windows, given token by token, of
    the listed patches that hold brain."""
    width: int
    "Channels that the kernels see: the inner width of the mixer for scan and conv."
    tokens: int
    "Tokens of all clips (units for mask, hidden tokens for loss)."
    call: Callable[[], object]


def launches(op: str, batch: int, dtype: torch.dtype = torch.bfloat16) -> Iterator[Launch]:
    """All calls of an operation at the base model's shapes, `batch` clips each."""
    if op in ("scan", "conv", "strd"):
        for stage in STAGES:
            yield from {"scan": _scan, "conv": _conv, "strd": _strd}[op](stage, batch, dtype)
    elif op in ("project", "select", "gate", "mlp"):
        yield from {"project": _project, "select": _select, "gate": _gate, "mlp": _mlp}[op](batch, dtype)
    elif op == "mask":
        for strategy in ("window", "tube", "token"):
            case = clip_cases.base_case(batch, strategy)
            keys = _meta(batch, dtype=torch.int64)
            units = num_units(case.grid, case.unit)
            yield Launch(
                op, "forward", strategy, 0, batch * units, _bind(mask.unit_mask, 0, keys, keys, units, units // 2)
            )
    else:
        for strategy in ("window", "token", "brain"):
            yield from {"embed": _embed, "loss": _loss}[op](strategy, batch, dtype)


def slots(entry: Compiled, launch: Launch) -> tuple[float, float]:
    """Warp instructions a token costs in the loops that work, and in the whole kernel."""
    inner, walked = 0.0, 0.0
    passes = _passes(entry, launch)
    for loop in entry.loops:
        around = math.prod(passes[: loop.depth])
        if loop.works:
            inner += loop.own * around * passes[loop.depth]
        else:
            walked += loop.own * around
    straight = entry.total - sum(loop.own for loop in entry.loops)
    warps = entry.num_warps * math.prod(entry.grid) / launch.tokens
    return inner * warps, (inner + walked + straight) * warps


def _passes(entry: Compiled, launch: Launch) -> list[float]:
    """How often the loops that work run, from the outermost inwards."""
    k = entry.constants
    if entry.name.startswith("scan"):
        return [math.prod(k["WINDOW"]) / k["UNROLL"]]
    if entry.name.startswith("conv"):
        return [k["RUN"] + (3 if "backward" in entry.name else 0)]
    if entry.name == "strd_kernel":
        return [-(-math.prod(k["WINDOW"]) // k["COLUMNS"]), -(-k["C"] // k["CHANNELS"])]
    if entry.name in ("embed_kernel", "loss_feature_kernel"):
        passes = -(-math.prod(k["PATCH"]) // k["VALUES"])
        visited = launch.tokens / (math.prod(entry.grid) * k["TOKENS"])  # other programs make no pass
        return [passes * min(1.0, visited)]
    if entry.name in ("mlp_kernel", "mlp_input_kernel"):
        return [-(-k["H"] // k["HIDDEN"])]
    if entry.name in ("gate_kernel", "gate_input_kernel", "project_kernel", "select_dt_kernel"):
        return [-(-k["E"] // k["INNER"])]
    if entry.name in ("select_step_kernel", "select_map_kernel"):
        return [launch.tokens / (entry.grid[1] * k["TOKENS"])]
    if entry.name in ("mlp_weight_kernel", "gate_weight_kernel", "project_gradients_kernel"):
        return [launch.tokens / (entry.grid[0] * k["TOKENS"])]
    tokens = launch.tokens / entry.grid[-1]  # of a clip
    if entry.name in ("embed_weight_kernel", "loss_head_kernel"):
        return [tokens / (entry.grid[0] * k["TOKENS"])]
    if entry.name == "embed_mask_token_kernel":
        return [math.prod(k["GRID"]) / (math.prod(entry.grid[:2]) * k["TOKENS"])]
    return [1.0]


def _bind(function: Callable, *args: object) -> Callable[[], object]:
    return lambda: function(*args)


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _scan(stage: Stage, batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    width, tokens, rank = 2 * stage.width, stage.windows.num_tokens, -(-stage.width // 16)
    x, y = _meta(batch, tokens, 2 * width, dtype=dtype)[..., :width], _meta(batch, tokens, width, dtype=dtype)
    _, B, C = _meta(batch, tokens, rank + 2 * STATES, dtype=dtype).split([rank, STATES, STATES], -1)
    A, D = _meta(width, STATES, dtype=torch.float32), _meta(width, dtype=torch.float32)
    arguments = (x, y, A, B, C, D, stage.windows, None, False)
    size = (stage.name, width, batch * tokens)
    yield Launch("scan", "forward", *size, _bind(scan.forward, *arguments))
    yield Launch("scan", "backward", *size, _bind(scan.backward, y, *arguments))


def _conv(stage: Stage, batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    width, tokens = 2 * stage.width, stage.windows.num_tokens
    x, y = _meta(batch, tokens, 2 * width, dtype=dtype)[..., :width], _meta(batch, tokens, width, dtype=dtype)
    weight, bias = _meta(width, TAPS, dtype=torch.float32), _meta(width, dtype=torch.float32)
    arguments = (x, weight, bias, stage.windows, None)
    size = (stage.name, width, batch * tokens)
    yield Launch("conv", "forward", *size, _bind(conv.forward, *arguments))
    yield Launch("conv", "backward", *size, _bind(conv.backward, y, *arguments))


def _strd(stage: Stage, batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    windows = batch * stage.windows.num_windows
    h = _meta(windows, stage.windows.length, stage.width, dtype=dtype)
    size = (stage.name, stage.width, batch * stage.windows.num_tokens)
    yield Launch("strd", "forward", *size, _bind(strd.scores, h, stage.windows.window, 5, 5))


def _project(batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    """The first stages: wider tokens go through torch."""
    for stage, case in zip(STAGES, project_cases.stage_cases(batch), strict=True):
        if case.width <= project.WIDEST[dtype]:
            x, d = (_meta(batch, case.tokens, n, dtype=dtype) for n in (case.width, case.inner))
            shapes = ((case.width,), (case.width,), (2 * case.inner, case.width))
            weights = [_meta(*shape, dtype=dtype) for shape in shapes]
            size = (stage.name, case.width, batch * case.tokens)
            yield Launch("project", "forward", *size, _bind(project.forward, x, *weights, 1e-5))
            yield Launch("project", "backward", *size, _bind(project.backward, d, d, x, x, *weights, 1e-5))


def _select(batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    for stage, case in zip(STAGES, select_cases.stage_cases(batch), strict=True):
        if case.width <= select.WIDEST[dtype]:
            maps = case.rank + 2 * case.states
            x, selection, state = (_meta(batch, case.tokens, n, dtype=dtype) for n in (case.width, maps, case.states))
            shapes = ((maps, case.width), (case.width, case.rank), (case.width,))
            weights = [_meta(*shape, dtype=dtype) for shape in shapes]
            size = (stage.name, case.width, batch * case.tokens)
            yield Launch("select", "forward", *size, _bind(select.steps, selection, *weights[1:]))
            inputs = (x, x, None, state, state, x, selection)
            yield Launch("select", "backward", *size, _bind(select.backward, *inputs, *weights))


def _gate(batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    """The first stages: wider tokens go through torch."""
    for stage, case in zip(STAGES, gate_cases.stage_cases(batch), strict=True):
        if case.width <= gate.WIDEST[dtype]:
            y = _meta(batch, case.tokens, case.inner, dtype=dtype)
            z = _meta(batch, case.tokens, 2 * case.inner, dtype=dtype)[..., case.inner :]
            weight, out = _meta(case.width, case.inner, dtype=dtype), _meta(batch, case.tokens, case.width, dtype=dtype)
            size = (stage.name, case.width, batch * case.tokens)
            yield Launch("gate", "forward", *size, _bind(gate.forward, y, z, weight, out))
            yield Launch("gate", "backward", *size, _bind(gate.backward, out, y, z, weight))


def _mlp(batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    """The first stages: wider tokens go through torch."""
    for stage, case in zip(STAGES, mlp_cases.stage_cases(batch), strict=True):
        if case.width <= mlp.WIDEST[dtype]:
            x = _meta(*case.tokens, case.width, dtype=dtype)
            shapes = (
                (case.width,),
                (case.width,),
                (case.hidden, case.width),
                (case.hidden,),
                (case.width, case.hidden),
            )
            weights = [_meta(*shape, dtype=dtype) for shape in (*shapes, (case.width,))]
            size = (stage.name, case.width, math.prod(case.tokens))
            yield Launch("mlp", "forward", *size, _bind(mlp.forward, x, *weights, 1e-5, True))
            yield Launch("mlp", "backward", *size, _bind(mlp.backward, x, x, *weights, 1e-5, True))


def _clips(strategy: str, batch: int) -> tuple[clip_cases.ClipCase, CodedClips, Hidden, torch.Tensor | None, int]:
    """A case, its clips, what is hidden, the list of patches and the tokens of a clip."""
    case = clip_cases.base_case(batch, "window" if strategy == "brain" else strategy)
    clips, hidden = clip_cases.meta_inputs(case)
    tokens = math.prod(case.grid)
    if strategy != "brain":
        return case, clips, hidden, None, tokens
    given, listed = _meta(batch, tokens, dtype=torch.bool), _meta(clip_cases.BRAIN_PATCHES, dtype=torch.int32)
    return case, clips, Hidden(given), listed, len(listed) * case.frames


def _embed(strategy: str, batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    case, clips, hidden, listed, tokens = _clips(strategy, batch)
    parameters = [v.to("meta", dtype) for v in clip_cases.make_parameters(case, torch.float32).values()]
    dy = _meta(batch, tokens, case.width, dtype=dtype)
    size = (strategy, case.width, batch * tokens)
    arguments = (clips, *parameters, hidden, case.slots, listed)
    yield Launch("embed", "forward", *size, _bind(embed.forward, *arguments))
    yield Launch("embed", "backward", *size, _bind(embed.backward, dy, *arguments))


def _loss(strategy: str, batch: int, dtype: torch.dtype) -> Iterator[Launch]:
    case, clips, hidden, listed, tokens = _clips(strategy, batch)
    features = _meta(batch, tokens, case.width, dtype=dtype)
    values = math.prod(case.patch)
    weight, bias = _meta(values, case.width, dtype=dtype), _meta(values, dtype=dtype)
    drawn = hidden.num_hidden * math.prod(case.unit)
    hidden_tokens = batch * (drawn if listed is None else round(tokens * case.ratio))
    call = _bind(loss.forward, clips, features, weight, bias, hidden, True, True, listed)
    yield Launch("loss", "forward", strategy, case.width, hidden_tokens, call)
