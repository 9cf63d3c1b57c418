"""The architecture of a published NeuroSTORM, read off the shapes of its weights.

In: a state dict under the published names (no prefix) and, where the checkpoint kept them, its hyper-parameters.
Out: a `ModelConfig` and, for every field, where its value comes from. What shapes fix is taken from shapes; windows
and the last stage leave no trace in them and come from the hyper-parameters, else from the released architecture.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmri_scale.config import ModelConfig
from fmri_scale.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
SHAPE, HYPER, RELEASED, GIVEN = "shapes", "hyper-parameters", "released architecture (assumed)", "command line"
HYPER_NAMES = {
    "embed_dim": "embed_dim",
    "depths": "depths",
    "window_size": "window_size",
    "first_window_size": "first_window_size",
    "last_stage_full": "last_layer_full_MSA",
    "channel_multiplier": "c_multiplier",
    "in_channels": "in_chans",
}
"Fields of ours and their published names."
HYPER_READ = frozenset([*HYPER_NAMES.values(), "patch_size", "img_size"])
"All hyper-parameters read here."
MOST_QUOTED = 200
"Characters of a hyper-parameter that a remark quotes."


@dataclass
class Detected:
    """An architecture and how each part of it is known."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def put(self, name: str, value: Any, origin: str) -> None:
        """Set a field."""
        self.values[name] = value
        self.origin[name] = origin

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return ModelConfig(**self.values)


def detect(shapes: Shapes, hyper: Mapping[str, Any], given: Mapping[str, Any]) -> Detected:
    """Return the architecture that weights of these shapes have.

    Parameters
    ----------
    shapes : of every weight, by published name.
    hyper : hyper-parameters of the checkpoint, as plain values of bounded size; may be empty.
    given : fields of ModelConfig that the user states; they go before everything else.

    Raises
    ------
    CheckpointError : these are not the weights of a NeuroSTORM, or shapes and hyper-parameters contradict each other
        in what the weights depend on.
    """
    found = Detected()
    stages = _stages(shapes)
    grid, width = shapes["pos_embeds.0.pos_embed"][2:5], shapes["pos_embeds.0.pos_embed"][1]
    found.put("embed_dim", width, SHAPE)
    found.put("depths", stages, SHAPE)
    found.put("num_frames", shapes["pos_embeds.0.time_embed"][5], SHAPE)
    found.put("channel_multiplier", shapes["pos_embeds.1.pos_embed"][1] // width if len(stages) > 1 else 2, SHAPE)
    found.put("mlp_ratio", shapes["layers.0.blocks.0.mlp.linear1.weight"][0] / width, SHAPE)
    inner, states = shapes["layers.0.blocks.0.mamba.A_log"]
    found.put("state_dim", states, SHAPE)
    found.put("expand", inner // width, SHAPE)
    found.put("conv_dim", shapes["layers.0.blocks.0.mamba.conv1d.weight"][2], SHAPE)
    prompt = shapes.get("layers.0.blocks.0.prompt")
    found.put("prompt_len", prompt[1] if prompt else 0, SHAPE)
    patch = _patch(found, shapes["patch_embed.fc.weight"][1], hyper, given)
    found.put("image_size", [n * p for n, p in zip(grid, patch, strict=True)], SHAPE)
    _windows(found, hyper)
    for name, value in given.items():
        found.put(name, value, GIVEN)
    _check_mask_token(found, shapes)
    _compare(found, hyper)
    return found


def _stages(shapes: Shapes) -> list[int]:
    """Return the number of blocks of each stage."""
    found = [re.fullmatch(r"layers\.(\d)\.blocks\.(\d{1,3})\.mamba\.A_log", name) for name in shapes]
    counts = Counter(int(match[1]) for match in found if match)
    depths = [counts[stage] for stage in range(1 + max(counts, default=-1))]
    needed = {"patch_embed.fc.weight": 2, "layers.0.blocks.0.mlp.linear1.weight": 2, "layers.0.blocks.0.mamba.A_log": 2}
    needed |= {"layers.0.blocks.0.mamba.conv1d.weight": 3}
    needed |= {f"pos_embeds.{i}.{kind}_embed": 6 for i in range(max(1, len(depths))) for kind in ("pos", "time")}
    missing = [name for name in needed if name not in shapes]
    if missing or not all(depths):
        raise CheckpointError(f"these are not the weights of a NeuroSTORM: no {missing[0] if missing else 'blocks'}")
    for name, axes in (needed | {"layers.0.blocks.0.prompt": 3}).items():
        if name in shapes and (len(shapes[name]) != axes or 0 in shapes[name]):
            raise CheckpointError(f"these are not the weights of a NeuroSTORM: {name} has shape {list(shapes[name])}")
    return depths


def _patch(found: Detected, values: int, hyper: Mapping[str, Any], given: Mapping[str, Any]) -> list[int]:
    """Set patch and channels from the number of values in a patch; return the patch's sides."""
    channels = given.get("in_channels") or hyper.get("in_chans") or 1
    patch = _numbers(given.get("patch_size") or hyper.get("patch_size"), 4)
    if patch and isinstance(channels, int) and math.prod(patch) * channels == values:
        found.put("patch_size", patch, HYPER)
        found.put("in_channels", channels, HYPER)
        return patch[:3]
    side = round(values ** (1 / 3))
    if side**3 != values:
        raise CheckpointError(f"a patch of {values} values is no cube of one channel: --set model.patch_size=[x,y,z,1]")
    found.put("patch_size", [side, side, side, 1], SHAPE)
    found.put("in_channels", 1, SHAPE)
    return [side, side, side]


def _windows(found: Detected, hyper: Mapping[str, Any]) -> None:
    for name in ("window_size", "first_window_size"):
        said = _numbers(hyper.get(HYPER_NAMES[name]), 4)
        found.put(name, said or [4, 4, 4, 4], HYPER if said else RELEASED)
    full = hyper.get("last_layer_full_MSA")
    found.put(
        "last_stage_full", full if isinstance(full, bool) else True, HYPER if isinstance(full, bool) else RELEASED
    )


def _check_mask_token(found: Detected, shapes: Shapes) -> None:
    """The one trace of the windows: the mask token of masked windows has a vector for each of their tokens."""
    token, window = shapes.get("window_mask_token") or shapes.get("mask_token", ()), found.values["window_size"]
    if len(token) == 2 and token[0] != math.prod(window):
        raise CheckpointError(
            f"the mask token has {token[0]} slots, but a window of {window} has {math.prod(window)}: give the windows "
            "of the training with --set model.window_size=[x,y,z,t] model.first_window_size=[x,y,z,t]"
        )


def _compare(found: Detected, hyper: Mapping[str, Any]) -> None:
    """Remark on hyper-parameters that the weights contradict; the weights are right."""
    for name, published in HYPER_NAMES.items():
        said = hyper.get(published)
        said = list(said) if isinstance(said, tuple) else said
        if said is not None and found.origin[name] == SHAPE and said != found.values[name]:
            found.remarks.append(
                f"hyper-parameter {published}={_quoted(said)}, but the weights have {found.values[name]}"
            )
    size = _numbers(hyper.get("img_size"), 4)
    actual = [*found.values["image_size"], found.values["num_frames"]]
    if size and size != actual:
        found.remarks.append(f"hyper-parameter img_size={size}, but the weights have {actual}")


def _quoted(value: Any) -> str:
    """Return a value of a file as a remark may show it: short, and without control characters."""
    text = repr(value)
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}..."


def _numbers(value: Any, count: int) -> list[int] | None:
    """Return a value as a list of that many positive whole numbers, if it is one."""
    if isinstance(value, list | tuple) and len(value) == count and all(type(n) is int and n > 0 for n in value):
        return list(value)
    return None
