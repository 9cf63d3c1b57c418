"""The encoder as a graph that torch alone can run: one file, no fmri_scale, no kernels of ours.

`torch.export` records the encoder; our operators are replaced by torch's own: the windowed convolution and scan by
plain tensor operations whose number grows with the square root of a window's length and whose memory does not, the
others by their definitions. In: a release. Out: `FILE.pt2`, which maps normalised clips to features and latent map; its
numbers are compared before it gets its name. Shape suffixes: B clips, N tokens, W windows of all clips, L tokens of a
window, C pieces of a window, E channels, S states, K taps.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmri_scale.errors import CheckpointError
from fmri_scale.kernels import conv, scan  # noqa: F401 - defines the operators that are replaced below
from fmri_scale.kernels.gate import reference as gate
from fmri_scale.kernels.mlp import reference as mlp
from fmri_scale.kernels.project import reference as project
from fmri_scale.kernels.select import reference as select
from fmri_scale.release.pretrained import Pretrained
from fmri_scale.release.reference import reference_clip

TOLERANCE = 1e-5
"Largest relative deviation (norm of the difference over norm) of the graph from the model, float32."
MAX_CLIPS = 64
"Clips of a batch that the graph takes, from 1."


class EncoderGraph(nn.Module):
    """What is recorded: clips `[B, C, X, Y, Z, T]` to features `[B, E]` and latent map `[B, E, D, H, W, T]`."""

    def __init__(self, model: Pretrained) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and latent map."""
        latent = self.backbone(volume)
        return latent.flatten(2).mean(-1), latent


def export_graph(model: Pretrained, path: str | Path, overwrite: bool = False) -> float:
    """Write the encoder's graph; return its largest relative deviation from the model.

    Parameters
    ----------
    model : a release, on the CPU.
    path : file to write; its name ends in .pt2.
    overwrite : replace a file that is there.

    Raises
    ------
    CheckpointError : the file cannot be written, the graph computes something else than the model, or the model
        computes patches of the brain alone.
    """
    path = Path(path)
    if model.config.brain_tokens:
        raise CheckpointError(
            f"{model.path}: computes the brain's patches alone (brain_tokens), which no graph records yet"
        )
    if path.suffix != ".pt2" or not path.parent.is_dir() or path.is_dir():
        raise CheckpointError(f"{path}: expected a file name that ends in .pt2, in a folder that is there")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path}: is there already; name another file or add --overwrite")
    aside = path.with_name(f".{path.stem}.partial.{os.getpid()}.pt2")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance", FutureWarning)  # torch's word to itself
            torch.export.save(record(model), aside)
            deviation = _deviation(model, torch.export.load(aside).module())
        if not deviation <= TOLERANCE:
            raise CheckpointError(f"{path}: the graph deviates from the model by {deviation:.1e}; not written")
        os.replace(aside, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return deviation


def record(model: Pretrained) -> Any:
    """Return the encoder as a `torch.export.ExportedProgram` of torch's own operators, for any number of clips."""
    clips = torch.export.Dim("clips", min=1, max=MAX_CLIPS)
    example = reference_clip(model, model.config.num_frames).repeat(2, 1, 1, 1, 1, 1)
    with torch.no_grad():
        # strict is the default of torch 2.6, whose compiler does not follow all of Python
        program = torch.export.export(
            EncoderGraph(model).eval(), (example,), dynamic_shapes=({0: clips},), strict=False
        )
    ours = torch.ops.fmri_scale
    plain = {
        ours.scan.default: plain_scan,
        ours.conv_silu.default: plain_conv_silu,
        ours.norm_project.default: _without_backend(project.forward),
        ours.select.default: _without_backend(select.forward),
        ours.gate_linear.default: _without_backend(gate.forward),
        ours.norm_mlp.default: _without_backend(mlp.forward),
    }
    program = program.run_decompositions(plain)
    program.example_inputs = ((torch.empty(0),), {})  # not the two clips, which would be most of the file
    return program


def _without_backend(definition: Callable[..., Any]) -> Callable[..., Any]:
    """Return a definition that takes an operator's arguments, the last of which names the backend."""
    return lambda *arguments: definition(*arguments[:-1])


def plain_conv_silu(
    x_BNE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    prefix_KE: Tensor | None,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    backend: str,
    table: None = None,
) -> Tensor:
    """`fmri_scale::conv_silu` in torch's own operators."""
    order = _order(grid, window, shift)
    x_WLE = x_BNE[:, order].flatten(0, 1)
    taps = weight_EK.shape[1]
    before = x_BNE.new_zeros(taps - 1, x_BNE.shape[2]) if prefix_KE is None else prefix_KE
    padded_WLE = torch.cat([before.expand(x_WLE.shape[0], -1, -1), x_WLE], dim=1)
    length = order.shape[1]
    mixed = bias_E + sum(padded_WLE[:, k : k + length] * weight_EK[:, k] for k in range(taps))
    return _scatter(F.silu(mixed), order, x_BNE)


def plain_scan(
    x_BNE: Tensor,
    dt_BNE: Tensor,
    A_ES: Tensor,
    B_BNS: Tensor,
    C_BNS: Tensor,
    D_E: Tensor,
    h0_ES: Tensor | None,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reverse: bool,
    backend: str,
    table: None = None,
) -> Tensor:
    """`fmri_scale::scan` in torch's own operators, a window cut into pieces that are walked side by side.

    Each piece is walked from zero for the state it ends with; the states are carried from piece to piece, decayed by
    exp(A * sum of dt); then each piece is walked again from what it inherits. Memory is that of one step.
    """
    order = _order(grid, window, shift)
    order = order.flip(1) if reverse else order
    x, dt, Bs, Cs = (v[:, order].flatten(0, 1) for v in (x_BNE, dt_BNE, B_BNS, C_BNS))
    split = (_pieces(order.shape[1]), -1)
    # one tensor a step, with the axis that is missing of channels and states
    steps = dt.unflatten(1, split).unsqueeze(-1).unbind(2)
    inputs = (dt * x).unflatten(1, split).unsqueeze(-1).unbind(2)
    B_steps, C_steps = (v.unflatten(1, split).unsqueeze(-2).unbind(2) for v in (Bs, Cs))

    def walk(h_WCES: Tensor, outputs: list[Tensor] | None = None) -> Tensor:
        for k, step_WCE1 in enumerate(steps):
            h_WCES = torch.addcmul(inputs[k] * B_steps[k], torch.exp(step_WCE1 * A_ES), h_WCES)
            if outputs is not None:
                outputs.append((h_WCES * C_steps[k]).sum(-1))
        return h_WCES

    start_WCES = torch.zeros_like(steps[0] * A_ES)
    ends = walk(start_WCES).unbind(1)
    decays = torch.exp(dt.unflatten(1, split).sum(2).unsqueeze(-1) * A_ES).unbind(1)
    carried = [start_WCES[:, 0] if h0_ES is None else h0_ES.expand_as(start_WCES[:, 0])]
    for end, decay in zip(ends[:-1], decays[:-1], strict=True):
        carried.append(torch.addcmul(end, decay, carried[-1]))
    outputs: list[Tensor] = []
    walk(torch.stack(carried, 1), outputs)
    return _scatter(torch.stack(outputs, 2).flatten(1, 2) + D_E * x, order, x_BNE)


def _order(grid: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Return the natural token index of each window slot; as kernels.windows, but part of the graph."""
    index = torch.arange(int(torch.Size(grid).numel())).view(list(grid)).roll([-s for s in shift], dims=(0, 1, 2, 3))
    split = [n for g, w in zip(grid, window, strict=True) for n in (g // w, w)]
    return index.view(split).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, int(torch.Size(window).numel()))


def _scatter(rows_WLE: Tensor, order: Tensor, like_BNE: Tensor) -> Tensor:
    """Bring rows in window order back to natural order."""
    flat = rows_WLE.reshape(like_BNE.shape)
    return torch.empty_like(flat).index_copy(1, order.flatten(), flat)


def _pieces(length: int) -> int:
    """Return into how many pieces a window is cut: the divisor nearest below the square root."""
    return max(n for n in range(1, int(length**0.5) + 1) if length % n == 0)


@torch.inference_mode()
def _deviation(model: Pretrained, graph: Any) -> float:
    """Return the largest relative deviation over features and latent maps, for one clip and for several."""
    worst = 0.0
    for clips in (1, 3):
        volume = reference_clip(model, model.config.num_frames).repeat(clips, 1, 1, 1, 1, 1)
        volume = volume * torch.linspace(1.0, 0.5, clips).view(-1, 1, 1, 1, 1, 1)
        for ours, theirs in zip(EncoderGraph(model)(volume), graph(volume), strict=True):
            worst = max(worst, _relative(ours.double(), theirs.double()))
    return worst


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the norm of the difference over that of ours; infinity where a value of either is not finite."""
    deviation = float((ours - theirs).norm() / ours.norm().clamp(min=1e-30))
    return deviation if math.isfinite(deviation) else math.inf  # max() would pass over NaN
