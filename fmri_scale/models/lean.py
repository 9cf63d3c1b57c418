"""A block's mixer, and the norms around it, keeping for the backward pass only what is dear to make again.

Kept are inputs of norms, inputs of the convolution and the gate, the scan's output and the narrow selection it is
steered by. The norms, the convolution, step sizes and gates are made again from these, which takes a few per cent of
a step and less than half of the memory (Chen et al. 2016, training with sublinear memory, section 4).

Everything runs in the dtype of the tokens: weights are cast to it, sums inside the kernels are float32. Without
gradients, and inside torch.compile, the same operators run with gradients of their own.

Shape suffixes: B clips, DHW tokens along x, y, z, T frames, N tokens of the padded grid, C width, E inner width,
S states, K convolution taps, R rank of dt.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.conv.op import conv_silu_backward_op
from fmri_scale.kernels.gate.op import gate_linear_backward_op, gate_linear_op
from fmri_scale.kernels.project.op import norm_project_backward_op, norm_project_op
from fmri_scale.kernels.scan import scan
from fmri_scale.kernels.scan.op import scan_backward_op
from fmri_scale.kernels.select.op import select_backward_op, select_op, select_steps_op
from fmri_scale.kernels.windows import Windows

Gradient = Tensor | None


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """Normalise tokens, map the last axis; keeps x `[..., C]` alone. The map has no bias."""
    weights = cast_like(x, norm.weight, norm.bias, linear.weight)
    return _NormLinear.apply(x, *weights, norm.eps) if recomputes() else _norm_linear(x, weights, norm.eps)


class Scan(NamedTuple):
    """Decay rates A `[E, S]` (negative), skip D `[E]` and first state `[E, S]` (or None) of one direction."""

    A: Tensor
    D: Tensor
    h0: Tensor | None


class Layout(NamedTuple):
    """What a mixer's tensors mean: the windows of the padded grid, the rank of dt, the number of states, the backend
    of the kernels, what the norm adds to a variance, and whether the tokens are added to what comes out."""

    windows: Windows
    rank: int
    states: int
    backend: str
    eps: float
    residual: bool


def mix(
    x_BDHWTC: Tensor,
    norm: nn.LayerNorm,
    taps: tuple[Tensor, Tensor, Tensor | None],
    projections: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    scans: list[Scan],
    layout: Layout,
) -> Tensor:
    """Norm, in-projection, convolution, selection, scan, gate and projection; keeps what the modules' docstring says.

    Parameters
    ----------
    x_BDHWTC : tokens; where their grid is smaller than that of the windows, zeros stand at the far ends, after the
        norm (and so after the in-projection, which has no bias).
    taps : weight `[E, K]`, bias `[E]` and the inputs before every window `[K-1, E]` (or None) of the convolution.
    projections : weights of in_proj `[2E, C]`, x_proj `[R+2S, E]`, dt_proj `[E, R]` and its bias `[E]`, out_proj
        `[C, E]`.
    scans : the forward scan and, for both directions, the one from the last token to the first.

    Returns
    -------
    `[B, N, C]` of the padded grid, in the dtype of the tokens.
    """
    gain, shift, *weights = cast_like(x_BDHWTC, norm.weight, norm.bias, *projections)
    one, other = scans[0], scans[1] if len(scans) > 1 else (None, None, None)
    run = _Mix.apply if recomputes() else _mix_alone
    return run(x_BDHWTC, gain, shift, weights[0], *taps, *weights[1:], *one, *other, layout)


def cast_like(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Return the weights in the dtype of x, cast together."""
    if all(w.dtype == x.dtype for w in weights):
        return weights
    if torch.compiler.is_compiling():
        return tuple(w.to(x.dtype) for w in weights)
    return _Cast.apply(x.dtype, *weights)


def recomputes() -> bool:
    """Whether a branch shall run by its function, which keeps little."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _Cast(torch.autograd.Function):
    """Copies in another dtype, all in one kernel each way."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [w.dtype for w in weights]
        return _cast(weights, [dtype] * len(weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Gradient, ...]:
        return None, *_cast(grads, ctx.dtypes)


def _cast(tensors: tuple[Tensor, ...], dtypes: list[torch.dtype]) -> tuple[Tensor, ...]:
    made = [torch.empty_like(v, dtype=dtype) for v, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(made, list(tensors))
    return tuple(made)


class _NormLinear(torch.autograd.Function):
    """`norm_linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gain, shift, weight)
        ctx.eps = eps
        return _norm_linear(x, (gain, shift, weight), eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Gradient, ...]:
        x, gain, shift, weight = ctx.saved_tensors
        u, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], gain, shift, ctx.eps)
        d_weight = weight_gradient(ctx.needs_input_grad[3], dy, u)
        return *norm_gradients(dy @ weight, x, mean, rstd, gain, shift), d_weight, None


def _norm_linear(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    gain, shift, weight = weights
    return F.linear(F.layer_norm(x, x.shape[-1:], gain, shift, eps), weight)


class _Mix(torch.autograd.Function):
    """`mix`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.layout = inputs
        out, *kept = _mix(*inputs)
        ctx.save_for_backward(*tensors, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Gradient, ...]:
        *inputs, half, z, selection, y = ctx.saved_tensors
        x, gain, shift, in_proj, *taps = inputs[:7]
        x_proj, dt_proj, dt_bias, out_proj = inputs[7:11]
        layout: Layout = ctx.layout
        d_out = d_out.contiguous()
        dy, dz, d_out_proj = gate_linear_backward_op(d_out, y, z, out_proj, layout.backend)
        mixed = _convolve(layout, half, *taps)
        dt = select_steps_op(selection, dt_proj, dt_bias, layout.backend)
        steered = (dy, mixed, dt, *_maps(selection, layout))
        d_mixed, d_dt, dB, dC, d_one = _scan_gradients(layout, False, *steered, *inputs[11:14])
        d_other: Sequence[Gradient] = (None, None, None)
        if inputs[14] is not None:
            again = _scan_gradients(layout, True, *steered, *inputs[14:17])
            for sum_, more in zip((d_mixed, d_dt, dB, dC), again[:4], strict=True):
                sum_ += more
            d_other = again[4]
        d_mixed, *d_select = select_backward_op(
            d_mixed, d_dt, None, dB, dC, mixed, selection, x_proj, dt_proj, dt_bias, layout.backend
        )
        d_half, *d_taps = _convolution_gradients(layout, d_mixed, half, *taps)
        d_half, dz = (_crop(v, x, layout) for v in (d_half, dz))
        past = d_out if layout.residual else None
        dx, *d_in = norm_project_backward_op(
            d_half, dz, past, x.flatten(1, 4), gain, shift, in_proj, layout.eps, layout.backend
        )
        return dx.view(x.shape), *d_in, *d_taps, *d_select, d_out_proj, *d_one, *d_other, None


def _mix(
    x, gain, shift, in_proj, weight_EK, bias_E, before_KE, x_proj, dt_proj, dt_bias, out_proj, A, D, h0, A_back, D_back,
    h0_back, layout
):  # fmt: skip
    """Return the output, then what the backward pass needs: both halves, the selection and what the scans gave."""
    tokens = x.flatten(1, 4)
    halves = norm_project_op(tokens, gain, shift, in_proj, layout.eps, layout.backend)
    half, z = (_pad(v, x, layout) for v in halves)
    mixed = _convolve(layout, half, weight_EK, bias_E, before_KE)
    dt, selection = select_op(mixed, x_proj, dt_proj, dt_bias, layout.backend)
    B, C = _maps(selection, layout)
    y = scan(mixed, dt, A, B, C, D, layout.windows, h0, False, layout.backend)
    if A_back is not None:
        y = y + scan(mixed, dt, A_back, B, C, D_back, layout.windows, h0_back, True, layout.backend)
    out = gate_linear_op(y, z, out_proj, tokens if layout.residual else None, layout.backend)
    return out, half, z, selection, y


def _mix_alone(*inputs: Any) -> Tensor:
    return _mix(*inputs)[0]


def _maps(selection: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """Return B and C `[B, N, S]`, as they lie in the selection."""
    return selection.split([layout.rank, layout.states, layout.states], dim=-1)[1:]


def _pad(v_BNE: Tensor, x_BDHWTC: Tensor, layout: Layout) -> Tensor:
    """Zeros at the far ends of a grid, up to that of the windows."""
    have = x_BDHWTC.shape[1:5]
    d, h, w, t = (n - m for n, m in zip(layout.windows.grid, have, strict=True))
    if not (d or h or w or t):
        return v_BNE
    return F.pad(v_BNE.unflatten(1, have), (0, 0, 0, t, 0, w, 0, h, 0, d)).flatten(1, 4)


def _crop(v_BNE: Tensor, x_BDHWTC: Tensor, layout: Layout) -> Tensor:
    """The other way."""
    d, h, w, t = x_BDHWTC.shape[1:5]
    if (d, h, w, t) == layout.windows.grid:
        return v_BNE
    return v_BNE.unflatten(1, layout.windows.grid)[:, :d, :h, :w, :t].flatten(1, 4)


def _convolve(layout: Layout, x: Tensor, weight_EK: Tensor, bias_E: Tensor, before_KE: Tensor | None) -> Tensor:
    return conv_silu(x, weight_EK, bias_E, layout.windows, before_KE, layout.backend)


def _scan_gradients(layout: Layout, reverse: bool, dy, x, dt, B, C, A, D, h0):
    """Return the gradients of x, dt, B, C, and those of A, D and h0."""
    windows = layout.windows
    geometry = (list(windows.grid), list(windows.window), list(windows.shift))
    options = (*geometry, reverse, layout.backend, windows.table)
    dx, d_dt, dA, dB, dC, dD, dh0 = scan_backward_op(dy, x, dt, A, B, C, D, h0, *options)
    return dx, d_dt, dB, dC, (dA, dD, None if h0 is None else dh0)


def _convolution_gradients(layout: Layout, dy, x, weight_EK, bias_E, before_KE):
    """Return the gradients of its input, weight, bias and prefix."""
    windows = layout.windows
    geometry = (list(windows.grid), list(windows.window), list(windows.shift))
    options = (*geometry, layout.backend, windows.table)
    *grads, d_before = conv_silu_backward_op(dy, x, weight_EK, bias_E, before_KE, *options)
    return *grads, None if before_KE is None else d_before


def weight_gradient(wanted: bool, dy: Tensor, inputs: Tensor) -> Gradient:
    """Return the gradient of a linear map's weight, if it is wanted."""
    return dy.flatten(0, -2).t() @ inputs.flatten(0, -2) if wanted else None


def norm_gradients(du: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor, shift: Tensor):
    """Return the gradients of a norm's input, gain and shift."""
    shape = list(x.shape[-1:])
    return torch.ops.aten.native_layer_norm_backward(du, x, shape, mean, rstd, gain, shift, [True, True, True])
