"""The branches of a block, keeping for the backward pass only what is dear to make again.

Kept are inputs of norms, inputs of the convolution, the scan's output and the narrow selection it is steered by. The
norms, the convolution, step sizes, gates and the MLP's hidden layer are made again from these, which takes a few per
cent of a step and less than half of the memory (Chen et al. 2016, training with sublinear memory, section 4).

Everything runs in the dtype of the tokens: weights are cast to it, sums inside the kernels are float32. Without
gradients, and inside torch.compile (whose partitioner decides by itself what to make again), the same formulas run
as they stand.

Shape suffixes: B clips, DHW tokens along x, y, z, T frames, N tokens of the padded grid, C width, E inner width,
S states, K convolution taps, R rank of dt, H hidden width of the MLP.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fmri_scale.kernels.conv import conv_silu
from fmri_scale.kernels.conv.op import conv_silu_backward_op
from fmri_scale.kernels.scan import scan
from fmri_scale.kernels.scan.op import scan_backward_op
from fmri_scale.kernels.windows import Windows
from fmri_scale.models.shapes import Grid4

Gradient = Tensor | None


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, padded: Grid4 | None = None) -> Tensor:
    """Normalise tokens, pad their grid with zeros, map the last axis; keeps x alone.

    Parameters
    ----------
    x : `[..., C]`; with `padded`, `[B, D, H, W, T, C]`.
    linear : has no bias.
    padded : tokens along x, y, z and time after padding at the far ends; None: as they are.
    """
    weights = cast_like(x, norm.weight, norm.bias, linear.weight)
    if padded == tuple(x.shape[1:5]):
        padded = None
    if recomputes():
        return _NormLinear.apply(x, *weights, norm.eps, padded)
    return _norm_linear(x, weights, norm.eps, padded)


def norm_mlp(x: Tensor, norm: nn.LayerNorm, up: nn.Linear, down: nn.Linear) -> Tensor:
    """Normalise, map up, exact GELU, map down; keeps x alone."""
    weights = cast_like(x, norm.weight, norm.bias, up.weight, up.bias, down.weight, down.bias)
    return _NormMlp.apply(x, *weights, norm.eps) if recomputes() else _norm_mlp(x, weights, norm.eps)


class Scan(NamedTuple):
    """Decay rates A `[E, S]` (negative), skip D `[E]` and first state `[E, S]` (or None) of one direction."""

    A: Tensor
    D: Tensor
    h0: Tensor | None


class Layout(NamedTuple):
    """What a mixer's tensors mean: the windows, the rank of dt, the number of states, the backend of the kernels."""

    windows: Windows
    rank: int
    states: int
    backend: str


def mix(
    xz_BNE: Tensor,
    taps: tuple[Tensor, Tensor, Tensor | None],
    projections: tuple[Tensor, Tensor, Tensor, Tensor],
    scans: list[Scan],
    layout: Layout,
) -> Tensor:
    """Convolution, selection, scan, gate and projection of a mixer; keeps its input, the selection and the scan.

    Parameters
    ----------
    xz_BNE : `[B, N, 2E]`, the two halves of the in-projection.
    taps : weight `[E, K]`, bias `[E]` and the inputs before every window `[K-1, E]` (or None) of the convolution.
    projections : weights of x_proj `[R+2S, E]`, dt_proj `[E, R]` and its bias `[E]`, out_proj `[C, E]`.
    scans : the forward scan and, for both directions, the one from the last token to the first.

    Returns
    -------
    `[B, N, C]` in the dtype of the input.
    """
    weights = cast_like(xz_BNE, *projections)
    one, other = scans[0], scans[1] if len(scans) > 1 else (None, None, None)
    run = _Mix.apply if recomputes() else _mix_alone
    return run(xz_BNE, *taps, *weights, *one, *other, layout)


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
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, eps: float, padded: Grid4 | None
    ) -> Tensor:
        ctx.save_for_backward(x, gain, shift, weight)
        ctx.eps, ctx.padded = eps, padded
        return _norm_linear(x, (gain, shift, weight), eps, padded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Gradient, ...]:
        x, gain, shift, weight = ctx.saved_tensors
        u, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], gain, shift, ctx.eps)
        d_weight = weight_gradient(ctx.needs_input_grad[3], dy, u if ctx.padded is None else _pad(u, ctx.padded))
        du = dy @ weight
        if ctx.padded is not None:
            d, h, w, t = x.shape[1:5]
            du = du[:, :d, :h, :w, :t]
        return *norm_gradients(du, x, mean, rstd, gain, shift), d_weight, None, None


def _norm_linear(x: Tensor, weights: Sequence[Tensor], eps: float, padded: Grid4 | None) -> Tensor:
    gain, shift, weight = weights
    u = F.layer_norm(x, x.shape[-1:], gain, shift, eps)
    return F.linear(u if padded is None else _pad(u, padded), weight)


class _NormMlp(torch.autograd.Function):
    """`norm_mlp`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights_eps: Any) -> Tensor:
        *weights, ctx.eps = weights_eps
        ctx.save_for_backward(x, *weights)
        return _norm_mlp(x, weights, ctx.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Gradient, ...]:
        x, gain, shift, up, up_bias, down, _ = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        u, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], gain, shift, ctx.eps)
        hidden = F.linear(u, up, up_bias)
        d_down = weight_gradient(wanted[5], dy, F.gelu(hidden))
        d_hidden = torch.ops.aten.gelu_backward(dy @ down, hidden)
        d_up = weight_gradient(wanted[3], d_hidden, u)
        biases = (d_hidden.flatten(0, -2).sum(0), dy.flatten(0, -2).sum(0))
        norm = norm_gradients(d_hidden @ up, x, mean, rstd, gain, shift)
        return *norm, d_up, biases[0], d_down, biases[1], None


def _norm_mlp(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    gain, shift, up, up_bias, down, down_bias = weights
    u = F.layer_norm(x, x.shape[-1:], gain, shift, eps)
    return F.linear(F.gelu(F.linear(u, up, up_bias)), down, down_bias)


class _Mix(torch.autograd.Function):
    """`mix`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.layout = inputs
        out, selection, y_BNE = _mix(*inputs)
        ctx.save_for_backward(*tensors, selection, y_BNE)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Gradient, ...]:
        *inputs, selection, y_BNE = ctx.saved_tensors
        xz, taps, (x_proj, dt_proj, dt_bias, out_proj) = inputs[0], inputs[1:4], inputs[4:8]
        wanted = ctx.needs_input_grad
        x, z = xz.chunk(2, -1)
        gate = F.silu(z)
        d_out_proj = weight_gradient(wanted[7], d_out, y_BNE * gate)
        d_gated = d_out @ out_proj
        dz = torch.ops.aten.silu_backward(d_gated * y_BNE, z)
        layout: Layout = ctx.layout
        mixed = _convolve(layout, x, *taps)
        raw, dt, B, C = _steps(selection, dt_proj, dt_bias, layout)
        steered = (d_gated.mul_(gate), mixed, dt, B, C)
        d_mixed, d_dt, dB, dC, d_one = _scan_gradients(layout, False, *steered, *inputs[8:11])
        d_other: Sequence[Gradient] = (None, None, None)
        if inputs[11] is not None:
            again = _scan_gradients(layout, True, *steered, *inputs[11:14])
            for sum_, more in zip((d_mixed, d_dt, dB, dC), again[:4], strict=True):
                sum_ += more
            d_other = again[4]
        d_raw = torch.ops.aten.softplus_backward(d_dt.to(raw.dtype), raw, 1.0, 20.0)
        d_dt_proj = weight_gradient(wanted[5], d_raw, selection[..., : layout.rank])
        d_selection = torch.cat([d_raw @ dt_proj, dB.to(raw.dtype), dC.to(raw.dtype)], -1)
        d_x_proj = weight_gradient(wanted[4], d_selection, mixed)
        d_mixed = d_mixed.flatten(0, 1).addmm_(d_selection.flatten(0, 1), x_proj).view_as(d_mixed)
        dx, *d_taps = _convolution_gradients(layout, d_mixed, x, *taps)
        d_projections = (d_x_proj, d_dt_proj, d_raw.flatten(0, 1).sum(0), d_out_proj)
        return torch.cat([dx, dz], -1), *d_taps, *d_projections, *d_one, *d_other, None


def _mix(
    xz, weight_EK, bias_E, before_KE, x_proj, dt_proj, dt_bias, out_proj, A, D, h0, A_back, D_back, h0_back, layout
):
    """Return the output, the selection (dt before its projection, B, C) and what the scans gave."""
    x, z = xz.chunk(2, -1)
    mixed = _convolve(layout, x, weight_EK, bias_E, before_KE)
    selection = F.linear(mixed, x_proj)
    _, dt, B, C = _steps(selection, dt_proj, dt_bias, layout)
    y = scan(mixed, dt, A, B, C, D, layout.windows, h0, False, layout.backend)
    if A_back is not None:
        y = y + scan(mixed, dt, A_back, B, C, D_back, layout.windows, h0_back, True, layout.backend)
    return F.linear(y * F.silu(z), out_proj), selection, y


def _mix_alone(*inputs: Any) -> Tensor:
    return _mix(*inputs)[0]


def _convolve(layout: Layout, x: Tensor, weight_EK: Tensor, bias_E: Tensor, before_KE: Tensor | None) -> Tensor:
    return conv_silu(x, weight_EK, bias_E, layout.windows, before_KE, layout.backend)


def _steps(
    selection: Tensor, dt_proj: Tensor, dt_bias: Tensor, layout: Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return step sizes before and after softplus `[B, N, E]`, B and C `[B, N, S]`."""
    low, B, C = selection.split([layout.rank, layout.states, layout.states], dim=-1)
    raw = F.linear(low, dt_proj, dt_bias)
    return raw, F.softplus(raw), B, C


def _scan_gradients(layout: Layout, reverse: bool, dy, x, dt, B, C, A, D, h0):
    """Return the gradients of x, dt, B, C, and those of A, D and h0."""
    windows = layout.windows
    geometry = (list(windows.grid), list(windows.window), list(windows.shift))
    dx, d_dt, dA, dB, dC, dD, dh0 = scan_backward_op(dy, x, dt, A, B, C, D, h0, *geometry, reverse, layout.backend)
    return dx, d_dt, dB, dC, (dA, dD, None if h0 is None else dh0)


def _convolution_gradients(layout: Layout, dy, x, weight_EK, bias_E, before_KE):
    """Return the gradients of its input, weight, bias and prefix."""
    windows = layout.windows
    geometry = (list(windows.grid), list(windows.window), list(windows.shift))
    *grads, d_before = conv_silu_backward_op(dy, x, weight_EK, bias_E, before_KE, *geometry, layout.backend)
    return *grads, None if before_KE is None else d_before


def weight_gradient(wanted: bool, dy: Tensor, inputs: Tensor) -> Gradient:
    """Return the gradient of a linear map's weight, if it is wanted."""
    return dy.flatten(0, -2).t() @ inputs.flatten(0, -2) if wanted else None


def norm_gradients(du: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor, shift: Tensor):
    """Return the gradients of a norm's input, gain and shift."""
    shape = list(x.shape[-1:])
    return torch.ops.aten.native_layer_norm_backward(du, x, shape, mean, rstd, gain, shift, [True, True, True])


def _pad(u_BDHWTC: Tensor, padded: Grid4) -> Tensor:
    d, h, w, t = (n - have for n, have in zip(padded, u_BDHWTC.shape[1:5], strict=True))
    return F.pad(u_BDHWTC, (0, 0, 0, t, 0, w, 0, h, 0, d))
