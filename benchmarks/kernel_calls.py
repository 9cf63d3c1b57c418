"""The calls that `kernels.py` times: each operation at each shape, ours and what it is compared with.

Inputs are made when a row's calls are asked for and freed with them, so that only one row's tensors exist at a time.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fmri_scale.kernels import roofline
from fmri_scale.kernels.backends import has_mamba, has_triton
from fmri_scale.kernels.clips import CodedClips, Hidden, brain_values, num_units, voxel_lookup
from fmri_scale.kernels.conv import cases as conv_cases
from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.conv import reference as conv_reference
from fmri_scale.kernels.embed import cases as clip_cases
from fmri_scale.kernels.embed import embed
from fmri_scale.kernels.embed import reference as embed_reference
from fmri_scale.kernels.gate import cases as gate_cases
from fmri_scale.kernels.gate import gate_linear
from fmri_scale.kernels.gate import reference as gate_reference
from fmri_scale.kernels.loss import cases as loss_cases
from fmri_scale.kernels.loss import masked_loss
from fmri_scale.kernels.loss import reference as loss_reference
from fmri_scale.kernels.mask import unit_mask
from fmri_scale.kernels.mlp import cases as mlp_cases
from fmri_scale.kernels.mlp import norm_mlp
from fmri_scale.kernels.mlp import reference as mlp_reference
from fmri_scale.kernels.project import cases as project_cases
from fmri_scale.kernels.project import norm_project
from fmri_scale.kernels.project import reference as project_reference
from fmri_scale.kernels.scan import cases as scan_cases
from fmri_scale.kernels.scan import reference as scan_reference
from fmri_scale.kernels.scan import scan
from fmri_scale.kernels.select import cases as select_cases
from fmri_scale.kernels.select import reference as select_reference
from fmri_scale.kernels.select import select
from fmri_scale.kernels.strd import cases as strd_cases
from fmri_scale.kernels.strd import reference as strd_reference
from fmri_scale.kernels.strd import scores
from fmri_scale.kernels.windows import Windows

OPERATIONS = ("scan", "conv", "project", "select", "gate", "mlp", "mask", "embed", "loss", "strd")
SMALL = Windows((2, 2, 1, 4), (1, 1, 1, 4), (0, 1, 0, 0))
"Windows of a smoke test."
COMPILED_STEPS = 32
"Tokens of a window at most for which torch.compile takes the definition's loop of the scan: 256 take it minutes."
Call = Callable[[], Any]
Named = Iterator[tuple[str, Call]]


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    op: str
    direction: str
    stage: str
    batch: int
    tokens: int
    "What instructions are counted by: tokens, units (mask), hidden tokens (loss)."
    work: roofline.Work
    calls: Callable[[], Named]
    "Names of implementations and what to time, made when asked for."


def rows_of(op: str, batch: int, small: bool) -> Iterator[Row]:
    """All rows of an operation; `small` at reduced shapes."""
    make = {
        "scan": _scan,
        "conv": _conv,
        "project": _project,
        "select": _select,
        "gate": _gate,
        "mlp": _mlp,
        "mask": _mask,
        "embed": _embed,
        "loss": _loss,
        "strd": _strd,
    }
    yield from make[op](batch, small)


def device() -> torch.device:
    """Where everything runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ours() -> str:
    """Backend of our kernels: Triton's, or the CPU's forms where there is no GPU (in a smoke test)."""
    return "triton" if device().type == "cuda" and has_triton() else "torch"


def compiled(function: Callable) -> Callable:
    """torch.compile of a definition; without a GPU by the backend that needs no C++ compiler."""
    return torch.compile(function, backend="inductor" if device().type == "cuda" else "aot_eager")


def _scan(batch: int, small: bool) -> Iterator[Row]:
    cases = [scan_cases.ScanCase(batch, SMALL, 8, 4)] if small else scan_cases.stage_cases(batch)
    for number, case in enumerate(cases, 1):
        for direction in ("forward", "backward"):
            tokens = case.batch * case.windows.num_tokens
            calls = _bound(_scan_calls, case, direction)
            yield Row("scan", direction, f"s{number}", batch, tokens, roofline.scan_work(case, direction), calls)


def _scan_calls(case: scan_cases.ScanCase, direction: str) -> Named:
    inputs = _leaves(scan_cases.make_inputs(case, torch.bfloat16).values())
    front, windows = inputs[:6], case.windows
    yield _timed("ours", direction, lambda: scan(*front, windows, backend=ours()), inputs)
    if has_mamba():
        yield _timed("mamba_ssm", direction, lambda: scan(*front, windows, backend="mamba_ssm"), inputs)
    if case.batch == 1:
        yield _timed("eager", direction, lambda: scan_reference.forward(*front, windows), inputs)
        if windows.length <= COMPILED_STEPS:
            made = compiled(scan_reference.forward)
            yield _timed("compiled", direction, lambda: made(*front, windows), inputs)


def _conv(batch: int, small: bool) -> Iterator[Row]:
    cases = [conv_cases.ConvCase(batch, SMALL, 8)] if small else conv_cases.stage_cases(batch)
    for number, case in enumerate(cases, 1):
        for direction in ("forward", "backward"):
            tokens = case.batch * case.windows.num_tokens
            calls = _bound(_conv_calls, case, direction)
            yield Row("conv", direction, f"s{number}", batch, tokens, roofline.conv_work(case, direction), calls)


def _conv_calls(case: conv_cases.ConvCase, direction: str) -> Named:
    x, weight, bias = _leaves(conv_cases.make_inputs(case, torch.bfloat16).values())
    inputs = [x, weight, bias]
    yield _timed("ours", direction, lambda: conv_silu(x, weight, bias, case.windows, backend=ours()), inputs)
    if case.batch == 1:
        low = [v.detach().to(x.dtype).requires_grad_() for v in inputs]  # the definition mixes no dtypes
        yield _timed("eager", direction, lambda: conv_reference.forward(*low, case.windows), low)
        made = compiled(conv_reference.forward)
        yield _timed("compiled", direction, lambda: made(*low, case.windows), low)


def _project(batch: int, small: bool) -> Iterator[Row]:
    cases = [project_cases.ProjectCase(batch, 9, 8, 16)] if small else project_cases.stage_cases(batch)
    for number, case in enumerate(cases, 1):
        for direction in ("forward", "backward"):
            calls, tokens = _bound(_project_calls, case, direction), batch * case.tokens
            yield Row("project", direction, f"s{number}", batch, tokens, roofline.project_work(case, direction), calls)


def _project_calls(case: project_cases.ProjectCase, direction: str) -> Named:
    inputs = _leaves(project_cases.make_inputs(case, torch.bfloat16).values())
    yield _timed("ours", direction, lambda: norm_project(*inputs, backend=ours()), inputs)
    if case.batch == 1:
        yield _timed("eager", direction, lambda: project_reference.forward(*inputs, 1e-5), inputs)
        made = compiled(project_reference.forward)
        yield _timed("compiled", direction, lambda: made(*inputs, 1e-5), inputs)


def _select(batch: int, small: bool) -> Iterator[Row]:
    cases = [select_cases.SelectCase(batch, 9, 16, 2)] if small else select_cases.stage_cases(batch)
    for number, case in enumerate(cases, 1):
        for direction in ("forward", "backward"):
            calls, tokens = _bound(_select_calls, case, direction), batch * case.tokens
            yield Row("select", direction, f"s{number}", batch, tokens, roofline.select_work(case, direction), calls)


def _select_calls(case: select_cases.SelectCase, direction: str) -> Named:
    inputs = _leaves(select_cases.make_inputs(case, torch.bfloat16).values())
    yield _timed("ours", direction, lambda: select(*inputs, backend=ours()), inputs)
    if case.batch == 1:
        yield _timed("eager", direction, lambda: select_reference.forward(*inputs), inputs)
        made = compiled(select_reference.forward)
        yield _timed("compiled", direction, lambda: made(*inputs), inputs)


def _gate(batch: int, small: bool) -> Iterator[Row]:
    cases = [gate_cases.GateCase(batch, 9, 16, 8)] if small else gate_cases.stage_cases(batch)
    for number, case in enumerate(cases, 1):
        for direction in ("forward", "backward"):
            calls, tokens = _bound(_gate_calls, case, direction), batch * case.tokens
            yield Row("gate", direction, f"s{number}", batch, tokens, roofline.gate_work(case, direction), calls)


def _gate_calls(case: gate_cases.GateCase, direction: str) -> Named:
    inputs = _leaves(gate_cases.make_inputs(case, torch.bfloat16).values())
    yield _timed("ours", direction, lambda: gate_linear(*inputs, backend=ours()), inputs)
    if case.batch == 1:
        yield _timed("eager", direction, lambda: gate_reference.forward(*inputs), inputs)
        made = compiled(gate_reference.forward)
        yield _timed("compiled", direction, lambda: made(*inputs), inputs)


def _mlp(batch: int, small: bool) -> Iterator[Row]:
    cases = [mlp_cases.MlpCase((batch, 9), 8, 32)] if small else mlp_cases.stage_cases(batch)
    for number, case in enumerate(cases, 1):
        for direction in ("forward", "backward"):
            calls = _bound(_mlp_calls, case, direction)
            tokens = math.prod(case.tokens)
            yield Row("mlp", direction, f"s{number}", batch, tokens, roofline.mlp_work(case, direction), calls)


def _mlp_calls(case: mlp_cases.MlpCase, direction: str) -> Named:
    inputs = _leaves(mlp_cases.make_inputs(case, torch.bfloat16).values())
    yield _timed("ours", direction, lambda: norm_mlp(*inputs, backend=ours()), inputs)
    if case.tokens[0] == 1:
        yield _timed("eager", direction, lambda: mlp_reference.forward(*inputs, 1e-5, True), inputs)
        made = compiled(mlp_reference.forward)
        yield _timed("compiled", direction, lambda: made(*inputs, 1e-5, True), inputs)


def _mask(batch: int, small: bool) -> Iterator[Row]:
    for strategy in ("window",) if small else ("window", "tube", "token"):
        case = clip_cases.base_case(batch, strategy)
        units = num_units(case.grid, case.unit)
        work = roofline.mask_work(units, batch)
        yield Row("mask", "forward", strategy, batch, batch * units, work, _bound(_mask_calls, units, batch))


def _mask_calls(units: int, batch: int) -> Named:
    keys = torch.arange(batch, device=device())
    for name, backend in (("ours", ours()), ("eager", "torch")):
        yield name, _bound(unit_mask, 0, keys, keys, units, units // 2, None, backend)


def _clip_case(batch: int, strategy: str, small: bool) -> clip_cases.ClipCase:
    case = clip_cases.base_case(batch, "window" if strategy == "brain" else strategy)
    return replace(case, image=(24, 24, 24), frames=4, width=8) if small else case


def clips_of(case: clip_cases.ClipCase, brain: torch.Tensor | None = None) -> tuple[CodedClips, Hidden]:
    """Random codes of a brain (None: a ball that fills 28 % of the image, about its share), and the hidden tokens."""
    if brain is None:
        axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in case.image), indexing="ij")
        brain = sum(axis.square() for axis in axes) < 0.66  # type: ignore[assignment, operator]
    places = brain.flatten().nonzero().squeeze(1)  # type: ignore[union-attr]
    where = device()
    codes = torch.randint(-128, 128, (case.batch, case.frames, len(places)), dtype=torch.int8, device=where)
    scale = torch.rand(case.batch, 2, len(places), device=where).half()
    gain, shift, outside = torch.rand(3, case.batch, device=where).unbind(0)
    lookup = voxel_lookup(places, case.image).to(where)
    hidden = clip_cases.make_hidden(case)
    moved = {name: getattr(hidden, name).to(where) for name in ("epoch", "clip_ids")}
    return CodedClips(codes, scale, gain, shift, outside, lookup, case.image, case.patch), hidden._replace(**moved)


def _listed(case: clip_cases.ClipCase, strategy: str) -> tuple[int | None, int]:
    """How many patches are listed (None: none), and the tokens of a batch."""
    positions = math.prod(case.grid[:3])
    patches = min(clip_cases.BRAIN_PATCHES, positions // 2) if strategy == "brain" else None
    return patches, case.batch * (patches or positions) * case.frames


def _listed_clips(case: clip_cases.ClipCase, patches: int | None) -> tuple[CodedClips, Hidden, torch.Tensor | None]:
    """Clips, what is hidden (of listed patches: given, half of the tokens) and the patches with the most brain."""
    clips, hidden = clips_of(case)
    if patches is None:
        return clips, hidden, None
    listed = brain_values(clips).argsort(descending=True)[:patches].sort().values.int()
    return clips, Hidden(torch.rand(case.batch, math.prod(case.grid), device=device()) < case.ratio), listed


def _embed(batch: int, small: bool) -> Iterator[Row]:
    for strategy in ("window", "brain") if small else ("window", "token", "brain"):
        case = _clip_case(batch, strategy, small)
        patches, tokens = _listed(case, strategy)
        work = roofline.embed_work(case, patches=patches)
        for direction in ("forward", "backward"):
            calls = _bound(_embed_calls, case, direction, patches)
            yield Row("embed", direction, strategy, batch, tokens, work, calls)


def _embed_calls(case: clip_cases.ClipCase, direction: str, patches: int | None) -> Named:
    clips, hidden, listed = _listed_clips(case, patches)
    inputs = _leaves(clip_cases.make_parameters(case, torch.bfloat16).values())
    call = lambda: embed(clips, *inputs, hidden, case.slots, backend=ours(), patches_K=listed)  # noqa: E731
    yield _timed("ours", direction, call, inputs)
    if case.batch == 1:
        rest = (hidden, case.slots, listed)
        yield _timed("eager", direction, lambda: embed_reference.forward(clips, *inputs, *rest), inputs)
        made = compiled(embed_reference.forward)
        yield _timed("compiled", direction, lambda: made(clips, *inputs, *rest), inputs)


def _loss(batch: int, small: bool) -> Iterator[Row]:
    for strategy in ("window", "brain") if small else ("window", "token", "brain"):
        case = _clip_case(batch, strategy, small)
        patches, tokens = _listed(case, strategy)
        calls, hidden_tokens = _bound(_loss_calls, case, patches), round(tokens * case.ratio)
        work = roofline.loss_work(case, patches=patches)
        yield Row("loss", "forward", strategy, batch, hidden_tokens, work, calls)


def _loss_calls(case: clip_cases.ClipCase, patches: int | None) -> Named:
    """Loss and gradients together: ours makes them in one."""
    clips, hidden, listed = _listed_clips(case, patches)
    made_inputs = loss_cases.make_inputs(case, torch.bfloat16)
    if listed is not None:
        made_inputs["features"] = made_inputs["features"][:, : len(listed) * case.frames].contiguous()
    inputs = _leaves(made_inputs.values())

    def with_gradients(function: Callable[[], torch.Tensor]) -> Call:
        return lambda: torch.autograd.grad(function(), inputs)

    yield "ours", with_gradients(lambda: masked_loss(clips, *inputs, hidden, backend=ours(), patches_K=listed))
    if case.batch == 1:
        yield "eager", with_gradients(lambda: loss_reference.loss(clips, *inputs, hidden, True, listed))
        made = compiled(loss_reference.loss)
        yield "compiled", with_gradients(lambda: made(clips, *inputs, hidden, True, listed))


def _strd(batch: int, small: bool) -> Iterator[Row]:
    cases = [strd_cases.SMALL[0]] if small else strd_cases.stage_cases(batch)
    for number, case in enumerate(cases, 1):
        tokens = case[0] * math.prod(case[1])
        calls = _bound(_strd_calls, case, batch)
        yield Row("strd", "forward", f"s{number}", batch, tokens, roofline.strd_work(case), calls)


def _strd_calls(case: strd_cases.Case, batch: int) -> Named:
    _, window, _, l_spat, l_temp = case
    h = strd_cases.make_inputs(case, torch.bfloat16).to(device())
    yield "ours", lambda: scores(h, window, l_spat, l_temp, backend=ours())
    if batch == 1:
        yield "eager", lambda: strd_reference.scores(h, window, l_spat, l_temp)
        made = compiled(strd_reference.scores)
        yield "compiled", lambda: made(h, window, l_spat, l_temp)


def _timed(name: str, direction: str, call: Callable[[], Any], inputs: list[torch.Tensor]) -> tuple[str, Call]:
    """What to time of a call: itself, or its gradient alone."""
    if direction == "forward":
        return name, call
    y = call()
    upstream = tuple(map(torch.randn_like, y)) if isinstance(y, tuple) else torch.randn_like(y)
    return name, lambda: torch.autograd.grad(y, inputs, upstream, retain_graph=True)


def _leaves(values: Any) -> list[torch.Tensor]:
    return [v.detach().to(device()).requires_grad_() for v in values if v is not None]


def _bound(function: Callable, *args: Any) -> Callable[[], Any]:
    return lambda: function(*args)
