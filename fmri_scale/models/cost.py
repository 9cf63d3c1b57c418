"""What a model costs, by arithmetic: parameters, operations forward and backward, activations kept.

Operations count a multiply-add as two and cover the matrix products, the convolution and the scan; norms,
activations and element sums are left out. A backward pass costs twice the matrix products of the forward pass; the
scan's own factors are below; what the branches of a block make again (lean.py) is left out too. Operations and
bytes are those of one clip.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fmri_scale.config import ModelConfig
from fmri_scale.models.shapes import (
    StageShape,
    decoder_stages,
    encoder_stages,
    patch_values,
    stage_width,
)

SCAN_FORWARD = 7
"Operations per token, channel and state: decay 2, input 1, state 2, output 2."
SCAN_BACKWARD = 20
"The same for the backward pass, which recomputes the states (5) and walks them back (15)."


@dataclass(frozen=True)
class PartCost:
    """Cost of one part: scalars, operations of a clip, values its backward pass needs of the forward pass."""

    parameters: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    kept_values: int = 0

    def __add__(self, other: "PartCost") -> "PartCost":
        return PartCost(
            self.parameters + other.parameters,
            self.forward_flops + other.forward_flops,
            self.backward_flops + other.backward_flops,
            self.kept_values + other.kept_values,
        )


@dataclass(frozen=True)
class Cost:
    """Cost of a masked autoencoder: the parts `embed`, `encoder.0` ..., `decoder.0` ..., `head`, and their sum.

    `activation_bytes(2)` is what a clip's activations take in bf16, `activation_bytes(4)` in fp32.
    """

    parts: dict[str, PartCost]

    @property
    def total(self) -> PartCost:
        """The sum of all parts."""
        return sum(self.parts.values(), PartCost())

    @property
    def encoder(self) -> PartCost:
        """The sum of the encoder's parts, mask tokens included."""
        return sum((part for name, part in self.parts.items() if name.startswith(("embed", "encoder"))), PartCost())

    def activation_bytes(self, bytes_per_value: int) -> int:
        """Return the bytes that a clip's forward pass keeps for its backward pass."""
        return self.total.kept_values * bytes_per_value


def cost(
    config: ModelConfig,
    num_frames: int | None = None,
    from_codes: bool = True,
    patches: Sequence[int] | None = None,
) -> Cost:
    """Return the cost of training on one clip of `num_frames` frames (None: the configuration's).

    Parameters
    ----------
    from_codes : the model reads int8 codes; otherwise volumes, whose patches and squared differences are kept.
    patches : those that are computed of each stage, with model.brain_tokens (`Backbone.num_patches`); None: all,
        which is more than such a model needs.
    """
    frames = config.num_frames if num_frames is None else num_frames
    stages = encoder_stages(config, patches)
    tokens, values = stages[0].positions * frames, patch_values(config)
    masks = PartCost(config.embed_dim * (2 + math.prod(config.window_size)))
    of_volumes = PartCost(kept_values=0 if from_codes else tokens * values)
    parts = {"embed": _linear(tokens, values, config.embed_dim, bias=True) + masks + of_volumes}
    for i, shape in enumerate(stages):
        position = PartCost((math.prod(shape.grid) + config.num_frames) * shape.width)
        parts[f"encoder.{i}"] = position + _blocks(config, shape, frames, config.prompt_len)
        if i < len(stages) - 1:
            coarse, wide = stages[i + 1].positions * frames, 8 * shape.width
            merge = _norm(wide) + _linear(coarse, wide, stage_width(config, i + 1))
            parts[f"encoder.{i}"] += merge + PartCost(kept_values=coarse * wide)
    for i, shape in enumerate(decoder_stages(config, patches)):
        coarse, wide = stages[-1 - i].positions * frames, shape.width * config.channel_multiplier
        expand = _linear(coarse, wide, 8 * shape.width) + _norm(shape.width)
        parts[f"decoder.{i}"] = expand + PartCost(kept_values=coarse * wide) + _blocks(config, shape, frames, 0)
    # The norm's input and the features' gradient; of volumes the features and, at most, the difference that is squared.
    head = _norm(config.embed_dim) + _linear(tokens, config.embed_dim, values, bias=True)
    parts["head"] = head + PartCost(kept_values=2 * tokens * config.embed_dim) + of_volumes
    return Cost(parts)


def _linear(tokens: int, inputs: int, outputs: int, bias: bool = False) -> PartCost:
    products = 2 * tokens * inputs * outputs
    return PartCost(inputs * outputs + bias * outputs, products, 2 * products)


def _norm(width: int) -> PartCost:
    return PartCost(2 * width)


def _blocks(config: ModelConfig, shape: StageShape, frames: int, prompts: int) -> PartCost:
    """Cost of a stage's blocks; of each its input and the MLP's are kept, beside what the mixer keeps."""
    tokens, width = shape.positions * frames, shape.width
    hidden = int(width * config.mlp_ratio)
    mlp = _linear(tokens, width, hidden, bias=True) + _linear(tokens, hidden, width, bias=True)
    rest = _norm(width) + _norm(width) + mlp + PartCost(prompts * width, kept_values=2 * tokens * width)
    blocks = [rest + _mixer(config, width, tokens, padded) for padded in shape.padded_tokens(frames)]
    if config.checkpoint_blocks:
        blocks = [
            PartCost(b.parameters, b.forward_flops, b.backward_flops + b.forward_flops, tokens * width) for b in blocks
        ]
    return sum(blocks, PartCost())


def _mixer(config: ModelConfig, width: int, inward: int, tokens: int) -> PartCost:
    """Cost of `inward` tokens, on a padded grid of `tokens`."""
    inner, states, rank = config.expand * width, config.state_dim, math.ceil(width / 16)
    elements, taps = tokens * inner * states, tokens * inner * config.conv_dim
    conv = PartCost(inner * (config.conv_dim + 1), 2 * taps, 4 * taps)
    scan = PartCost(inner * (states + 1), SCAN_FORWARD * elements, SCAN_BACKWARD * elements)
    if config.bidirectional:
        scan += scan
    projections = (
        _linear(inward, width, 2 * inner)
        + _linear(tokens, inner, rank + 2 * states)
        + _linear(tokens, rank, inner, bias=True)
        + _linear(tokens, inner, width)
    )
    # x and z, the scan's output; dt before its projection, B and C.
    kept = PartCost(kept_values=tokens * (3 * inner + rank + 2 * states))
    return conv + scan + projections + kept
